//! The contract's cases.

use peerpods_cloud_api::{Tee, Zone};
use peerpods_cloud_conformance::{CASES, Subject, run};
use peerpods_mock_cloud::Options;

use crate::world::World;

async fn conforms(options: Options, zone: Option<&str>) {
    let world = World::start(options).await;
    let subject = Subject {
        open: Box::new({
            let settings = world.settings();
            move || std::sync::Arc::new(peerpods_cloud_aws::AwsProvider::new(settings.clone()).unwrap())
        }),
        owner_prefix: "conformance/aws-".to_owned(),
        instance_type: "m6a.large".to_owned(),
        tee: Tee::Snp,
        zone: zone.map(|zone| Zone::new(zone).unwrap()),
        largest_batch: 100,
    };
    let outcome = run(&subject, "").await;
    assert!(outcome.failed.is_empty() && outcome.passed == CASES.len(), "{:?}", outcome.failed);
    let left = peerpods_mock_cloud::admin::summary(&world.cloud);
    assert_eq!((left.existing, left.parts), (0, 0), "instances, volumes and interfaces that the cases leave");
}

#[tokio::test(flavor = "multi_thread")]
async fn provider_conforms() {
    conforms(Options::default(), None).await;
}

/// Answers come late and in another order than their questions.
#[tokio::test(flavor = "multi_thread")]
async fn provider_conforms_on_a_slow_cloud_in_a_zone_of_its_own() {
    use peerpods_mock_cloud::faults::Span;
    let slow = Options { call: Span::ms(1, 30), launch: Span::ms(5, 60), ..Options::default() };
    conforms(slow, Some("eu-west-1b")).await;
}
