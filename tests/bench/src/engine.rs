//! The planner with as many pods as the largest clusters have: time of a pass, and memory.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use peerpods_cloud_api::{Instance, InstanceId, InstanceState, InstanceType, LaunchToken, OwnerTag, Tee};
use peerpods_controller_api::{
    ClaimId, ClaimKey, ClaimRecord, ClaimRef, ClaimStatus, Class, ClassName, ClassRecord, LaunchKey, Mib, NodeName, PodRef, PodVmRecord,
    PodVmState, Record, RootOfTrust,
};
use peerpods_engine::plan::{Input, Write, plan};
use peerpods_engine::{Observed, Records, Seen, Timing};

use crate::figure::{Budget, Figure};

const CLAIMS: u32 = 150_000;
/// Of these so many have just come and have no pod VM yet.
const NEW: u32 = 1_000;

/// One pass of the planner while everything runs and a burst arrives.
pub(crate) fn run() -> Result<Vec<Figure>> {
    let before = rss_mib()?;
    let (records, observed) = world()?;
    let owner = OwnerTag::new("owner")?;
    let timing = Timing::default();
    let input =
        Input { records: &records, observed: &observed, owner: &owner, timing: &timing, now: Duration::from_secs(10), hold: None, seed: 1 };
    let (mut walk, mut pass) = (f64::MAX, f64::MAX);
    for _ in 0..5 {
        let begin = Instant::now();
        let open = records.claims.values().filter(|claim| claim.status == ClaimStatus::Open).count();
        let running = records.pod_vms.values().filter(|pod_vm| observed.instances.contains_key(&pod_vm.instance_id)).count();
        walk = walk.min(begin.elapsed().as_secs_f64() * 1e3);
        ensure!(open - running == usize::try_from(NEW)?);
        let begin = Instant::now();
        let plan = plan(&input);
        pass = pass.min(begin.elapsed().as_secs_f64() * 1e3);
        let launched: u32 =
            plan.writes.iter().filter_map(|(write, _)| if let Write::Put(Record::Launch(l)) = write { Some(l.count) } else { None }).sum();
        ensure!(launched == NEW && plan.writes.len() == 10, "{launched} instances in {} writes", plan.writes.len());
    }
    let memory = rss_mib()? - before;
    Ok(vec![
        Figure {
            name: "planner, 150,000 claims, 1,000 of them new".to_owned(),
            value: pass,
            unit: "ms",
            baseline: "looking at every record once".to_owned(),
            baseline_value: walk,
            budget: Budget::AtMost(1000.0),
        },
        Figure {
            name: "controller's records of 150,000 pods".to_owned(),
            value: memory,
            unit: "MiB",
            baseline: "the program without them".to_owned(),
            baseline_value: before,
            budget: Budget::AtMost(1536.0),
        },
    ])
}

fn world() -> Result<(Records, Observed)> {
    let (mut records, mut observed) = (Records::default(), Observed { listed: Some(Duration::from_secs(9)), ..Observed::default() });
    let class = ClassName::new("default")?;
    records.insert(Record::Class(ClassRecord { name: class.clone(), class: Class::new(Tee::Snp, RootOfTrust::Hardware)? }));
    let size = InstanceType { name: "small".to_owned(), vcpus: 2, memory: Mib(4096), gpus: 0, tees: vec![Tee::Snp] };
    observed.types = Some(vec![size]);
    let key = LaunchKey { class, tee: Tee::Snp, instance_type: "small".to_owned(), zone: None, image: None };
    let token = LaunchToken::new("t")?;
    for number in 0..CLAIMS {
        let (node, pod) = (number / 30, format!("pod-{number}"));
        let claim = ClaimRecord {
            key: ClaimKey::new(format!("node-{node}/default/{pod}"))?,
            id: ClaimId::from_random(u128::from(number)),
            pod: PodRef::new("default", pod, None)?,
            class: None,
            vcpus: 1.0,
            memory_mib: Mib(512),
            image: None,
            instance_type: None,
            node: NodeName::new(format!("node-{node}"))?,
            node_spki: "30".repeat(91),
            status: ClaimStatus::Open,
        };
        if number >= NEW {
            let id = InstanceId::new(format!("i-{number:017x}"))?;
            let address = Some(std::net::Ipv4Addr::from(0x0a00_0000 + number).into());
            let instance =
                Instance { id: id.clone(), owner: OwnerTag::new("owner")?, token: token.clone(), state: InstanceState::Running, address };
            observed.instances.insert(id.clone(), Seen { instance, at: Duration::from_secs(9) });
            observed.adopted.insert(id.clone(), Duration::ZERO);
            records.insert(Record::PodVm(PodVmRecord {
                instance_id: id,
                token: token.clone(),
                key: key.clone(),
                address,
                state: PodVmState::Claimed,
                claimed_by: Some(ClaimRef { key: claim.key.clone(), id: claim.id.clone() }),
            }));
        }
        records.insert(Record::Claim(claim));
    }
    Ok((records, observed))
}

fn rss_mib() -> Result<f64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    Ok(line.split_whitespace().next().context("no number")?.parse::<f64>()? / 1024.0)
}
