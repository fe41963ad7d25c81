use peerpods_cloud_api::{InstanceType, Mib, Tee};

/// The sizes of machines, cheapest first.
pub(crate) fn instance_types() -> Vec<InstanceType> {
    let sizes = [("local.small", 1, 256), ("local.medium", 2, 1024), ("local.large", 4, 4096)];
    let instance_type = |(name, vcpus, memory): (&str, u32, u32)| InstanceType {
        name: name.to_owned(),
        vcpus,
        memory: Mib(memory),
        gpus: 0,
        tees: vec![Tee::Sample],
    };
    sizes.map(instance_type).to_vec()
}
