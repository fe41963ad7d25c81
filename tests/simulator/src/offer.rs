//! What the modelled cloud offers.

use peerpods_cloud_api::{InstanceType, LaunchRequest, Mib, Tee};

/// Where it has room, until they are filled.
pub(crate) const ZONES: [&str; 2] = ["a", "b"];

/// The first field of a request that this cloud cannot serve.
pub(crate) fn wrong_field(request: &LaunchRequest) -> Option<&'static str> {
    let wrong = [
        ("count", !(1..=100).contains(&request.count)),
        ("user data", request.user_data.len() > 1024),
        ("instance type", instance_types().iter().all(|offered| offered.name != request.instance_type)),
        ("zone", request.zone.as_ref().is_some_and(|zone| !ZONES.contains(&zone.as_str()))),
        ("image", request.image.is_some()),
        ("tee", request.tee != Tee::Snp),
    ];
    wrong.into_iter().find(|(_, is_wrong)| *is_wrong).map(|(field, _)| field)
}

/// The sizes, cheapest first.
pub(crate) fn instance_types() -> Vec<InstanceType> {
    let size =
        |name: &str, vcpus, gib: u32| InstanceType { name: name.to_owned(), vcpus, memory: Mib(gib * 1024), gpus: 0, tees: vec![Tee::Snp] };
    vec![size("small", 2, 4), size("large", 8, 32)]
}
