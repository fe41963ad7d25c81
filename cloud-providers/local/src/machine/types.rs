use peerpods_cloud_api::{InstanceType, Mib, Tee};

/// The sizes of machines, cheapest first; measured ones have a TPM besides.
pub(crate) fn instance_types(measured: bool) -> Vec<InstanceType> {
    let sizes = [("local.small", 1, 256), ("local.medium", 2, 1024), ("local.large", 4, 4096)];
    let instance_type = |(name, vcpus, memory): (&str, u32, u32)| InstanceType {
        name: name.to_owned(),
        vcpus,
        memory: Mib(memory),
        gpus: 0,
        tees: tees(measured).to_vec(),
    };
    sizes.map(instance_type).to_vec()
}

/// What a machine can prove: a TPM where boots are measured into one.
pub(crate) fn tees(measured: bool) -> &'static [Tee] {
    if measured { &[Tee::Sample, Tee::Tpm] } else { &[Tee::Sample] }
}
