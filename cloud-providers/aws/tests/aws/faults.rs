//! What goes wrong at EC2, and what the engine is told.

use std::time::Duration;

use peerpods_cloud_api::{CloudProvider as _, LaunchRequest, Limits, OwnerTag, ProviderError, Tee};
use peerpods_mock_cloud::Options;
use peerpods_mock_cloud::faults::{Fault, Kind};

use crate::world::{World, request, until_gone};

fn fault(action: &str, kind: Kind) -> Fault {
    Fault { action: action.to_owned(), kind, times: 1 }
}

#[tokio::test]
async fn a_lost_answer_is_found_by_its_token() {
    let world = World::start(Options::default()).await;
    let provider = world.provider();
    provider.instance_types().await.unwrap();
    for (token, kind) in [("fails", Kind::FailAfter), ("closes", Kind::CloseAfter)] {
        world.cloud.add_fault(fault("RunInstances", kind));
        let said = provider.launch(&request(token)).await;
        assert!(matches!(said, Err(ProviderError::Unavailable { .. })), "{said:?}");
        let found = provider.launch(&request(token)).await.unwrap();
        assert_eq!(found.instances.len(), 1);
    }
    assert_eq!(provider.list(&OwnerTag::new("cluster-a").unwrap()).await.unwrap().len(), 2);
}

#[tokio::test]
async fn nothing_is_tried_twice() {
    let world = World::start(Options::default()).await;
    let provider = world.provider();
    provider.launch(&request("first")).await.unwrap();
    for (code, status) in [("RequestLimitExceeded", 503), ("InternalError", 500), ("InsufficientInstanceCapacity", 500)] {
        let before = world.cloud.calls().len();
        world.cloud.add_fault(fault("RunInstances", Kind::Refuse { code: code.to_owned(), status }));
        assert!(provider.launch(&request("second")).await.is_err());
        assert_eq!(world.cloud.calls().len(), before + 1, "{code}: the engine retries, not the SDK");
    }
}

#[tokio::test]
async fn limits_capacity_and_quota_are_told_apart() {
    let world = World::start(Options { limits: Limits::EC2, ..Options::default() }).await;
    let provider = world.provider();
    world.cloud.account(|account, _| account.set_capacity("m6a.large", "eu-west-1a", Some(3)));
    let launched = provider.launch(&LaunchRequest { count: 5, ..request("some") }).await.unwrap();
    assert_eq!(launched.instances.len(), 3, "as many as there is room for");
    let said = provider.launch(&request("none")).await;
    assert!(matches!(said, Err(ProviderError::InsufficientCapacity { .. })), "{said:?}");
    world.cloud.account(|account, _| account.set_capacity("m6a.large", "eu-west-1a", None));
    world.cloud.account(|account, _| account.set_vcpu_quota(Some(6)));
    let said = provider.launch(&request("quota")).await;
    assert!(matches!(&said, Err(ProviderError::QuotaExceeded { detail }) if detail.contains("VcpuLimitExceeded")), "{said:?}");
    world.cloud.account(|account, _| account.set_vcpu_quota(None));
    let mut said = Ok(());
    for number in 0..20 {
        said = provider.launch(&request(&format!("t{number}"))).await.map(drop);
        if said.is_err() {
            break;
        }
    }
    assert!(matches!(said, Err(ProviderError::Throttled { .. })), "{said:?}");
}

#[tokio::test]
async fn instances_that_are_all_gone_are_an_empty_launch() {
    let world = World::start(Options::default()).await;
    let provider = world.provider();
    let id = provider.launch(&request("gone")).await.unwrap().instances.remove(0).id;
    provider.delete(&id).await.unwrap();
    until_gone(provider.as_ref(), &id).await;
    assert_eq!(provider.launch(&request("gone")).await.unwrap().instances, []);
    assert_eq!(provider.get(&id).await, Err(ProviderError::NotFound));
    // EC2 still knows it for an hour and accepts another end of it.
    assert_eq!(provider.delete(&id).await, Ok(()));
}

#[tokio::test]
async fn what_ec2_would_refuse_is_refused() {
    let world = World::start(Options::default()).await;
    let provider = world.provider_with(|settings| settings.instance_types = ["g4dn.xlarge".to_owned()].into());
    let of = |name: &str| LaunchRequest { tee: Tee::Sample, instance_type: name.to_owned(), ..request(name) };
    let zone = Some(peerpods_cloud_api::Zone::new("eu-west-1b").unwrap());
    let said = provider.launch(&LaunchRequest { zone, ..of("g4dn.xlarge") }).await;
    assert!(matches!(said, Err(ProviderError::InsufficientCapacity { .. })), "another zone would do: {said:?}");
    let arm = world.provider_with(|settings| settings.instance_types = ["m7g.large".to_owned()].into());
    let said = arm.launch(&of("m7g.large")).await;
    assert!(matches!(&said, Err(ProviderError::InvalidRequest { detail }) if detail.contains("not for x86_64")), "{said:?}");
}

#[tokio::test]
async fn a_silent_cloud_is_given_up() {
    let world = World::start(Options::default()).await;
    let provider = world.provider();
    provider.instance_types().await.unwrap();
    world.cloud.add_fault(fault("DescribeInstances", Kind::Delay { ms: 600_000 }));
    let owner = OwnerTag::new("cluster-a").unwrap();
    // The call's own deadline, in time that passes by itself only while everybody waits.
    tokio::time::pause();
    let begin = tokio::time::Instant::now();
    let said = provider.list(&owner).await;
    assert!(matches!(said, Err(ProviderError::DeadlineExceeded)), "{said:?}");
    assert!(begin.elapsed() < Duration::from_secs(60));
}

#[tokio::test]
async fn nobody_there_is_unavailable() {
    let world = World::start(Options::default()).await;
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let provider = world.provider_with(|settings| settings.endpoint = Some(format!("http://{closed}")));
    let said = provider.instance_types().await;
    assert!(matches!(&said, Err(ProviderError::Unavailable { detail }) if detail.contains("cannot be reached")), "{said:?}");
}
