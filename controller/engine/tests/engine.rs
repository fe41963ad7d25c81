//! The engine over a cloud in memory: what nodes see, which faults they do not see, and what a death at any step leaves.

mod support;

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use peerpods_cloud_api::{InstanceId, OwnerTag, ProviderError};
use peerpods_controller_api::{ClaimKey, Class, ClassName, Mib, NodeName, PodRef, Pool, RecordKind, RootOfTrust, Tee};
use peerpods_engine::{ClaimSpec, ClaimView, Console, Driver, Handle, Journal as _, MemoryJournal, Parts, RequestError, Timing, Totals};
use support::{FakeCloud, Fault, Fuse, FusedCloud, FusedJournal};

/// What outlives a controller.
struct World {
    cloud: Arc<FakeCloud>,
    journal: MemoryJournal,
    journal_faults: Arc<Mutex<VecDeque<Fault>>>,
    next_random: Arc<AtomicU64>,
}

struct Running {
    handle: Handle,
    fuse: Arc<Fuse>,
    task: tokio::task::JoinHandle<Result<(), peerpods_engine::DriverError>>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn owner() -> OwnerTag {
    OwnerTag::new("owner-1").expect("valid")
}

struct FakeConsole;

#[async_trait]
impl Console for FakeConsole {
    async fn tail(&self, id: &InstanceId) -> Option<String> {
        Some(format!("{id}: kernel panic"))
    }
}

impl World {
    fn new() -> Self {
        Self { cloud: FakeCloud::new(), journal: MemoryJournal::new(), journal_faults: Arc::default(), next_random: Arc::default() }
    }

    /// Starts a controller that dies when the fuse blows.
    fn start(&self, fuse: &Arc<Fuse>) -> Running {
        self.start_with(fuse, class())
    }

    fn start_with(&self, fuse: &Arc<Fuse>, class: Class) -> Running {
        let next = Arc::clone(&self.next_random);
        let (driver, handle) = Driver::new(Parts {
            journal: Arc::new(FusedJournal {
                inner: self.journal.share(),
                fuse: Arc::clone(fuse),
                faults: Arc::clone(&self.journal_faults),
            }),
            provider: Arc::new(FusedCloud { cloud: Arc::clone(&self.cloud), fuse: Arc::clone(fuse) }),
            console: Some(Arc::new(FakeConsole)),
            owner: owner(),
            classes: BTreeMap::from([(ClassName::new("default").expect("valid"), class)]),
            user_data: Box::new(|_| b"{}".to_vec()),
            random: Box::new(move || u128::from(next.fetch_add(1, Ordering::Relaxed))),
            timing: Timing { grace: Duration::ZERO, ..Timing::default() },
        });
        Running { handle, fuse: Arc::clone(fuse), task: tokio::spawn(driver.run(std::future::pending())) }
    }

    fn start_lasting(&self) -> Running {
        self.start(&Fuse::never())
    }

    /// Nothing of any claim is left anywhere.
    async fn check_empty(&self, controller: &Running) {
        until("nothing is left", controller.handle.totals(), Totals::is_empty).await;
        assert_eq!(self.cloud.instances(), []);
        let left = self.journal.load().await.expect("loads");
        assert!(left.iter().all(|stored| stored.record.kind() == RecordKind::Class), "{left:?}");
    }
}

fn class() -> Class {
    Class::new(Tee::Sample, RootOfTrust::Insecure).expect("valid")
}

fn key(name: &str) -> ClaimKey {
    ClaimKey::new(format!("node-1/default/{name}")).expect("valid")
}

fn spec(name: &str) -> ClaimSpec {
    ClaimSpec {
        key: key(name),
        pod: PodRef::new("default", name, None).expect("valid"),
        class: None,
        vcpus: 1.0,
        memory: Mib(512),
        image: None,
        instance_type: None,
        node: NodeName::new("node-1").expect("valid"),
        node_spki: "aa".to_owned(),
    }
}

/// Waits in paused time; a limit far beyond every interval ends what does not come.
async fn until<T: Clone + std::fmt::Debug>(what: &str, mut watched: tokio::sync::watch::Receiver<T>, is_so: impl FnMut(&T) -> bool) -> T {
    let last = watched.clone();
    match tokio::time::timeout(Duration::from_secs(3600), watched.wait_for(is_so)).await {
        Ok(Ok(value)) => value.clone(),
        Ok(Err(_)) => panic!("{what}: the engine stopped; last seen: {:?}", *last.borrow()),
        Err(_) => panic!("{what}: not within an hour; last seen: {:?}", *last.borrow()),
    }
}

async fn until_claim(controller: &Running, name: &str, what: &str, is_so: impl FnMut(&ClaimView) -> bool) -> ClaimView {
    until(what, controller.handle.watch(&key(name)).await.expect("runs"), is_so).await
}

async fn assigned(controller: &Running, name: &str) -> String {
    match until_claim(controller, name, "assigned", |view| !matches!(view, ClaimView::Pending { .. })).await {
        ClaimView::Assigned { instance_id, .. } => instance_id.to_string(),
        other => panic!("{name} is not assigned: {other:?}"),
    }
}

async fn failed(controller: &Running, name: &str) -> (String, String) {
    match until_claim(controller, name, "failed", |view| matches!(view, ClaimView::Failed { .. })).await {
        ClaimView::Failed { during, cause } => (during, cause),
        other => panic!("{name} has not failed: {other:?}"),
    }
}

async fn gone(controller: &Running, name: &str) {
    until_claim(controller, name, "gone", |view| *view == ClaimView::Gone).await;
}

#[tokio::test(start_paused = true)]
async fn claim_is_assigned_and_release_deletes() {
    let world = World::new();
    let controller = world.start_lasting();
    controller.handle.claim(spec("web")).await.expect("claimed");
    let instance = assigned(&controller, "web").await;
    assert_eq!(controller.handle.claim(spec("web")).await.expect("idempotent"), controller.handle.get(&key("web")).await.expect("runs"));
    assert_eq!(assigned(&controller, "web").await, instance);
    controller.handle.release(&key("web")).await.expect("released");
    controller.handle.release(&key("web")).await.expect("idempotent");
    controller.handle.release(&key("never")).await.expect("unknown keys are no error");
    gone(&controller, "web").await;
    world.check_empty(&controller).await;
    assert_eq!(world.cloud.created(), 1);
}

#[tokio::test(start_paused = true)]
async fn passing_faults_of_the_cloud_are_waited_out() {
    let world = World::new();
    let errors = [
        ProviderError::Throttled { retry_after: Some(Duration::from_secs(7)) },
        ProviderError::Unavailable { detail: "down".to_owned() },
        ProviderError::DeadlineExceeded,
    ];
    for error in &errors {
        for call in ["list", "instance_types"] {
            world.cloud.fail_next(call, Fault::Before, error.clone());
        }
        for fault in [Fault::Before, Fault::After] {
            world.cloud.fail_next("launch", fault, error.clone());
            world.cloud.fail_next("delete", fault, error.clone());
        }
    }
    let controller = world.start_lasting();
    controller.handle.claim(spec("web")).await.expect("claimed");
    let pending = until_claim(&controller, "web", "says why", |view| format!("{view:?}").contains("trying again")).await;
    assert!(matches!(pending, ClaimView::Pending { .. }), "{pending:?}");
    assigned(&controller, "web").await;
    controller.handle.release(&key("web")).await.expect("released");
    gone(&controller, "web").await;
    world.check_empty(&controller).await;
    assert_eq!(world.cloud.created(), 1, "launches that failed after their effect are not repeated");
}

#[tokio::test(start_paused = true)]
async fn lasting_faults_of_the_cloud_fail_the_claim_with_their_cause() {
    let world = World::new();
    let errors = [
        ProviderError::QuotaExceeded { detail: "vCPUs".to_owned() },
        ProviderError::PermissionDenied { detail: "ec2:RunInstances".to_owned() },
        ProviderError::InvalidRequest { detail: "subnet".to_owned() },
        ProviderError::Internal { detail: "bug".to_owned() },
    ];
    let controller = world.start_lasting();
    for (i, error) in errors.iter().enumerate() {
        let name = format!("pod-{i}");
        // The worst case: the instance exists although the cloud says no.
        world.cloud.fail_next("launch", if i % 2 == 0 { Fault::Before } else { Fault::After }, error.clone());
        controller.handle.claim(spec(&name)).await.expect("claimed");
        assert_eq!(failed(&controller, &name).await, ("launching".to_owned(), error.to_string()));
        let again = controller.handle.claim(spec(&name)).await.expect("idempotent");
        assert!(matches!(again, ClaimView::Failed { .. }), "a failed claim stays failed until it is released: {again:?}");
        controller.handle.release(&key(&name)).await.expect("released");
        gone(&controller, &name).await;
        // A refusal is remembered for a while.
        controller.handle.claim(spec(&name)).await.expect("claimed");
        assert_eq!(failed(&controller, &name).await, ("launching".to_owned(), error.to_string()));
        controller.handle.release(&key(&name)).await.expect("released");
        gone(&controller, &name).await;
        tokio::time::sleep(Timing::default().refusal * 2).await;
    }
    world.check_empty(&controller).await;
}

#[tokio::test(start_paused = true)]
async fn what_is_full_is_passed_over_for_a_while() {
    let world = World::new();
    let controller = world.start_lasting();
    let full = ProviderError::InsufficientCapacity { detail: "zone a".to_owned() };
    world.cloud.fail_next("launch", Fault::Before, full.clone());
    for name in ["a", "b"] {
        controller.handle.claim(spec(name)).await.expect("claimed");
        assigned(&controller, name).await;
    }
    assert_eq!(world.cloud.launched(), ["small", "large", "large"], "the second claim does not ask again for what is full");
    // When nothing else is left, the claim hears of it.
    world.cloud.fail_next("launch", Fault::Before, full.clone());
    controller.handle.claim(spec("c")).await.expect("claimed");
    assert_eq!(failed(&controller, "c").await, ("launching".to_owned(), full.to_string()));
    tokio::time::sleep(Timing::default().refusal * 2).await;
    controller.handle.claim(spec("d")).await.expect("claimed");
    assigned(&controller, "d").await;
    assert_eq!(world.cloud.launched().last().map(String::as_str), Some("small"));
    controller.handle.release_all().await.expect("released");
    world.check_empty(&controller).await;
}

#[tokio::test(start_paused = true)]
async fn pool_is_filled_taken_from_and_filled_again() {
    let world = World::new();
    let pool = Pool { min: 2, max: 3, ttl_secs: 60 };
    let controller = world.start_with(&Fuse::never(), Class { pool: Some(pool), ..class() });
    let is_ready = |count| move |totals: &Totals| totals.pod_vms.get("running") == Some(&count) && totals.pod_vms.len() <= 2;
    until("the pool is full", controller.handle.totals(), is_ready(2)).await;
    assert_eq!(world.cloud.created(), 2);
    controller.handle.claim(spec("warm")).await.expect("claimed");
    let id = assigned(&controller, "warm").await;
    assert!(["i-1", "i-2"].contains(&id.as_str()), "{id} is not one of those that waited");
    until("it is filled again", controller.handle.totals(), is_ready(2)).await;
    assert_eq!(world.cloud.created(), 3);
    // A pod VM that dies while it waits is replaced.
    world.cloud.kill("i-3");
    until("the dead one is replaced", controller.handle.totals(), |_| world.cloud.created() == 4).await;
    until("the pool is full", controller.handle.totals(), is_ready(2)).await;
    controller.handle.release_all().await.expect("released");
    gone(&controller, "warm").await;
    until("the pool stays", controller.handle.totals(), is_ready(2)).await;
    drop(controller);
    let next = world.start_lasting();
    world.check_empty(&next).await;
}

#[tokio::test(start_paused = true)]
async fn pool_of_an_image_that_is_no_longer_offered_is_replaced() {
    let world = World::new();
    let pool = Some(Pool { min: 2, max: 2, ttl_secs: 60 });
    let is_full = |totals: &Totals| totals.pod_vms.get("running") == Some(&2) && totals.pod_vms.len() == 1;
    let first = world.start_with(&Fuse::never(), Class { pool, image: Some("old".to_owned()), ..class() });
    until("the pool is full", first.handle.totals(), is_full).await;
    drop(first);
    let second = world.start_with(&Fuse::never(), Class { pool, image: Some("new".to_owned()), ..class() });
    let totals = second.handle.totals();
    until("the pool is full of new ones", totals, |totals| is_full(totals) && world.cloud.created() == 4).await;
    let report = second.handle.report().await.expect("runs");
    assert!(report.pod_vms.iter().all(|pod_vm| pod_vm.image.as_deref() == Some("new")), "{report:?}");
    drop(second);
    world.check_empty(&world.start_lasting()).await;
}

#[tokio::test(start_paused = true)]
async fn claims_that_nothing_fits_fail_with_what_is_offered() {
    let world = World::new();
    let controller = world.start_lasting();
    let unknown = ClassName::new("gpu").expect("valid");
    let cases = [
        (ClaimSpec { vcpus: 64.0, ..spec("a") }, "offered: small, large"),
        (ClaimSpec { class: Some(unknown), ..spec("b") }, "class \"gpu\" is not offered; offered: default"),
        (ClaimSpec { image: Some("evil".to_owned()), ..spec("c") }, "image \"evil\" is not allowed by class \"default\""),
        (ClaimSpec { instance_type: Some("huge".to_owned()), ..spec("d") }, "instance type \"huge\" is not offered for sample"),
    ];
    for (spec, expected) in cases {
        let name = spec.pod.name().to_owned();
        controller.handle.claim(spec).await.expect("claimed");
        let (during, cause) = failed(&controller, &name).await;
        assert_eq!(during, "choosing an instance type");
        assert!(cause.contains(expected), "{cause}");
    }
    assert_eq!(world.cloud.created(), 0);
}

#[tokio::test(start_paused = true)]
async fn instance_that_dies_while_claimed_fails_the_claim_with_its_console() {
    let world = World::new();
    let controller = world.start_lasting();
    for (name, is_removed) in [("stops", false), ("vanishes", true)] {
        controller.handle.claim(spec(name)).await.expect("claimed");
        let id = assigned(&controller, name).await;
        if is_removed {
            world.cloud.vanish(&id)
        } else {
            world.cloud.kill(&id)
        }
        let (during, cause) = failed(&controller, name).await;
        assert_eq!(during, "claimed");
        assert!(cause.contains(&format!("{id}: kernel panic")), "{cause}");
        until("it is deleted although nobody has released it", controller.handle.totals(), |t| t.pod_vms.is_empty()).await;
        controller.handle.release(&key(name)).await.expect("released");
        gone(&controller, name).await;
    }
    world.check_empty(&controller).await;
}

#[tokio::test(start_paused = true)]
async fn an_operator_sees_all_and_may_delete_a_pod_vm_that_is_claimed() {
    let world = World::new();
    let controller = world.start_lasting();
    controller.handle.claim(spec("web")).await.expect("claimed");
    let id = InstanceId::new(assigned(&controller, "web").await).expect("valid");
    let report = controller.handle.report().await.expect("runs");
    assert_eq!((report.claims[0].status.as_str(), &report.claims[0].instance_id), ("assigned", &Some(id.clone())), "{report:?}");
    assert_eq!((report.pod_vms[0].state.as_str(), &report.pod_vms[0].claim), ("claimed", &Some(key("web"))), "{report:?}");
    assert!(report.classes.len() == 1 && report.instance_types.is_some() && report.launches.is_empty(), "{report:?}");
    assert!(!controller.handle.delete(&InstanceId::new("i-none").expect("valid")).await.expect("runs"));
    assert!(controller.handle.delete(&id).await.expect("recorded"));
    assert!(controller.handle.delete(&id).await.expect("idempotent"));
    let (during, cause) = failed(&controller, "web").await;
    assert!(cause.starts_with("the instance is being deleted"), "{during}: {cause}");
    let report = controller.handle.report().await.expect("runs");
    assert_eq!((report.claims[0].status.as_str(), &report.claims[0].detail), ("failed", &Some(format!("{during}: {cause}"))));
    controller.handle.release(&key("web")).await.expect("released");
    world.check_empty(&controller).await;
}

#[tokio::test(start_paused = true)]
async fn unowned_instances_are_deleted_and_foreign_ones_are_not() {
    let world = World::new();
    world.cloud.plant("i-ours", &owner());
    world.cloud.plant("i-theirs", &OwnerTag::new("owner-2").expect("valid"));
    let controller = world.start_lasting();
    until("ours is gone", controller.handle.totals(), |totals| totals.is_listed && totals.unowned == 0).await;
    let left: Vec<_> = world.cloud.instances().into_iter().map(|i| i.id.to_string()).collect();
    assert_eq!(left, ["i-theirs"]);
}

#[tokio::test(start_paused = true)]
async fn key_claimed_again_while_its_old_pod_vm_is_deleted_gets_another_one() {
    let world = World::new();
    let controller = world.start_lasting();
    controller.handle.claim(spec("web")).await.expect("claimed");
    let first = assigned(&controller, "web").await;
    controller.handle.release(&key("web")).await.expect("released");
    controller.handle.claim(spec("web")).await.expect("claimed again");
    let second = assigned(&controller, "web").await;
    assert_ne!(first, second);
    controller.handle.release(&key("web")).await.expect("released");
    gone(&controller, "web").await;
    world.check_empty(&controller).await;
}

/// A kubelet gives up after two minutes, deletes the sandbox and soon asks for another one.
#[tokio::test(start_paused = true)]
async fn slow_launch_serves_the_pod_that_comes_back() {
    let world = World::new();
    // Looks are two seconds apart.
    world.cloud.delay(150);
    let controller = world.start_lasting();
    let pods = ["a", "b", "c"];
    let begin = tokio::time::Instant::now();
    let mut tries = 0;
    let is_up = |totals: &Totals| totals.pod_vms.get("claimed") == Some(&3);
    loop {
        tries += 1;
        for pod in pods {
            controller.handle.claim(spec(pod)).await.expect("claimed");
        }
        let mut totals = controller.handle.totals();
        if tokio::time::timeout(Duration::from_secs(120), totals.wait_for(is_up)).await.is_ok() {
            break;
        }
        for pod in pods {
            controller.handle.release(&key(pod)).await.expect("released");
        }
        tokio::time::sleep(Duration::from_secs(12)).await;
    }
    assert!(tries == 3 && begin.elapsed() > Duration::from_secs(280), "{tries} tries in {:?}", begin.elapsed());
    assert_eq!(world.cloud.created(), 3, "one for each pod, however often it asks");
    controller.handle.release_all().await.expect("released");
    world.check_empty(&controller).await;
}

#[tokio::test(start_paused = true)]
async fn journal_faults_delay_and_never_double() {
    for faults in [[Fault::Before; 6], [Fault::After; 6]] {
        let world = World::new();
        let controller = world.start_lasting();
        until("the engine runs", controller.handle.totals(), |totals| totals.is_listed).await;
        *world.journal_faults.lock().expect("not poisoned") = faults.into();
        // A node tries again until the wish is recorded.
        while let Err(error) = controller.handle.claim(spec("web")).await {
            assert!(matches!(error, RequestError::NotRecorded { .. }), "{error}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assigned(&controller, "web").await;
        *world.journal_faults.lock().expect("not poisoned") = faults.into();
        while controller.handle.release(&key("web")).await.is_err() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        gone(&controller, "web").await;
        world.check_empty(&controller).await;
        assert_eq!(world.cloud.created(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn fenced_controller_stops() {
    let world = World::new();
    let mut controller = world.start_lasting();
    until("the engine runs", controller.handle.totals(), |totals| totals.is_listed).await;
    let _newer = world.journal.reopen();
    let error = controller.handle.claim(spec("web")).await.expect_err("is fenced");
    assert_eq!(error, RequestError::Stopped);
    assert!((&mut controller.task).await.expect("no panic").is_err());
}

/// One node's life, in steps that may each be repeated.
struct Story {
    at: usize,
    /// The instance that each pod got; it must stay the same one whatever dies.
    assigned: BTreeMap<&'static str, String>,
}

impl Story {
    const STEPS: usize = 10;

    async fn go_on(&mut self, world: &World, controller: &Running) {
        while self.at < Self::STEPS {
            self.step(world, controller).await;
            self.at += 1;
        }
    }

    async fn step(&mut self, world: &World, controller: &Running) {
        match self.at {
            0 => drop(controller.handle.claim(spec("a")).await.expect("claimed")),
            1 => drop(controller.handle.claim(spec("b")).await.expect("claimed")),
            // Released while it is being launched.
            2 => drop(controller.handle.claim(spec("c")).await.expect("claimed")),
            3 => controller.handle.release(&key("c")).await.expect("released"),
            4 => {
                for name in ["a", "b"] {
                    let id = assigned(controller, name).await;
                    assert_eq!(*self.assigned.entry(name).or_insert_with(|| id.clone()), id, "an assignment does not change");
                }
            }
            5 => controller.handle.release(&key("a")).await.expect("released"),
            6 => {
                world.cloud.kill(&self.assigned["b"]);
                let (during, _) = failed(controller, "b").await;
                assert_eq!(during, "claimed");
            }
            7 => controller.handle.release(&key("b")).await.expect("released"),
            8 => {
                for name in ["a", "b", "c"] {
                    gone(controller, name).await;
                }
            }
            _ => world.check_empty(controller).await,
        }
    }
}

/// Kills the controller after its n-th side effect, for every n, and lets the next one go on.
#[tokio::test(start_paused = true)]
async fn death_at_any_step_leaks_nothing_and_doubles_nothing() {
    let mut deaths = 0;
    for steps in 0.. {
        let world = World::new();
        let mut story = Story { at: 0, assigned: BTreeMap::new() };
        let controller = world.start(&Fuse::new(steps));
        let is_dead = tokio::select! {
            biased;
            () = controller.fuse.blown() => true,
            () = story.go_on(&world, &controller) => false,
        };
        if !is_dead {
            break;
        }
        deaths += 1;
        drop(controller);
        let next = world.start_lasting();
        story.go_on(&world, &next).await;
        assert!(world.cloud.created() <= 3, "{} instances for 3 claims after a death at step {steps}", world.cloud.created());
    }
    println!("died at each of {deaths} steps");
    assert!(deaths > 60, "only {deaths} steps");
}

/// The same with a second death of the successor, at a few places of its own.
#[tokio::test(start_paused = true)]
async fn death_of_the_successor_leaks_nothing_and_doubles_nothing() {
    for steps in (0..120).step_by(3) {
        for more in [0, 1, 2, 3, 5, 8, 13, 21] {
            let world = World::new();
            let mut story = Story { at: 0, assigned: BTreeMap::new() };
            for fuse in [Fuse::new(steps), Fuse::new(more), Fuse::never()] {
                let controller = world.start(&fuse);
                tokio::select! {
                    biased;
                    () = controller.fuse.blown() => {}
                    () = story.go_on(&world, &controller) => {}
                }
            }
            assert!(world.cloud.created() <= 3);
            assert_eq!(story.at, Story::STEPS);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn burst_of_claims_is_served_without_a_double() {
    let world = World::new();
    let controller = world.start_lasting();
    for n in 0..200 {
        controller.handle.claim(spec(&format!("pod-{n}"))).await.expect("claimed");
    }
    until("all are assigned", controller.handle.totals(), |totals| totals.pod_vms.get("claimed") == Some(&200)).await;
    assert_eq!(world.cloud.created(), 200);
    let launches = world.cloud.launched().len();
    assert!(launches <= 4, "{launches} launches for claims that came at once");
    controller.handle.release_all().await.expect("released");
    world.check_empty(&controller).await;
    assert_eq!(world.cloud.created(), 200);
}
