//! An agent policy as `peerpodctl policy generate` writes it from a pod's manifest, held against what containerd and our shim really
//! ask for: the pod of the manifest runs whole, and what a node changes in it is refused by the name of the rule.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;

use peerpods_e2e::{Container, Handler, Image, Level, Rig, RigOptions, RunningPod, Story, Version, WorldOptions};
use serde_json::json;

const SCRIPT: &str = "cat /settings/greeting; echo $COLOUR > /scratch/colour; cat /scratch/colour; \
    trap 'exit 0' TERM; while :; do sleep 1000 & wait $!; done";

/// A pod of the manifest, and of the policy that was made from it.
struct Pod {
    story: Story,
    running: RunningPod,
    image: String,
}

impl Pod {
    async fn run(rig: &Arc<Rig>, name: &'static str) -> Self {
        let world = rig.world();
        let web = Image::busybox(&[]).unwrap();
        let digest = world.registry().push(world.netns(), "web", "1", &web).unwrap();
        let image = format!("{}@{digest}", rig.image("web").rsplit_once(':').unwrap().0);
        let manifest = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "name": "web", "namespace": "default", "annotations": { "peerpods.io/class": "default" } },
            "spec": {
                "runtimeClassName": "peer-pods",
                "containers": [{
                    "name": "web", "image": image,
                    "command": ["/bin/sh", "-c", SCRIPT],
                    "env": [{ "name": "COLOUR", "value": "red" }],
                    "readinessProbe": { "exec": { "command": ["cat", "/settings/greeting"] } },
                    "volumeMounts": [
                        { "name": "settings", "mountPath": "/settings", "readOnly": true },
                        { "name": "scratch", "mountPath": "/scratch" },
                    ],
                }],
                "volumes": [{ "name": "settings", "configMap": { "name": "settings" } }, { "name": "scratch", "emptyDir": {} }],
            },
        });
        let (path, config) = (world.folder().join("pod.json"), world.folder().join("web.json"));
        std::fs::write(&path, manifest.to_string()).unwrap();
        std::fs::write(&config, web.config()).unwrap();
        let config = format!("web={}", config.display());
        let policy = world.peerpodctl(&["policy", "generate", "--pod", path.to_str().unwrap(), "--image-config", &config]).unwrap();
        let initdata = world.initdata();
        let (files, _) = initdata.split_once("\"policy.rego\"").unwrap();
        let initdata = format!("{files}\"policy.rego\" = '''\n{policy}'''\n");
        let story = Story::begin(Arc::clone(rig), Handler::PeerPods, name).await.unwrap();
        let pod = story.pod("web").initdata(&initdata).with(|pod| {
            pod.annotations.insert("peerpods.io/class".to_owned(), "default".to_owned());
        });
        Self { running: pod.run().await.unwrap(), story, image }
    }

    /// The manifest's container, its try number `attempt`, as a kubelet asks for it.
    fn container(&self, attempt: u32) -> Container {
        let settings = self.running.config_map("settings", &[("greeting", "good morning\n")]).unwrap();
        let scratch = self.running.empty_dir("scratch").unwrap();
        let mut container = Container::of_image("web", &self.image)
            .env("COLOUR", "red")
            .env("KUBERNETES_SERVICE_HOST", "10.96.0.1")
            .env("KUBERNETES_SERVICE_PORT", "443")
            .env("KUBERNETES_PORT", "tcp://10.96.0.1:443")
            .mount_read_only(&settings, "/settings")
            .mount(&scratch, "/scratch");
        container.config.command = ["/bin/sh", "-c", SCRIPT].map(str::to_owned).to_vec();
        container.config.metadata.as_mut().unwrap().attempt = attempt;
        container
    }

    async fn refuses(&self, what: &str, container: Container) {
        let error = self.running.try_start(container).await.map(drop).expect_err(what);
        println!("{what}: {}", error.message());
        // Files come first, and where they would be mounted is part of their name.
        let rules = ["CreateContainerRequest is blocked by policy", "CopyFileRequest is blocked by policy"];
        assert!(rules.iter().any(|rule| error.message().contains(rule)), "{what}: {}", error.message());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_manifests_pod_runs_and_what_a_node_changes_is_refused() {
    let rig = Arc::new(Rig::start(&RigOptions::new(Version::V2, WorldOptions::new(Level::Sandbox))).unwrap());
    let pod = Pod::run(&rig, "generated").await;

    let other = pod.running.empty_dir("settings").unwrap();
    let command = |script: &str| ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
    for (attempt, (what, change)) in (10..).zip([
        ("another command", Box::new(|c: &mut Container| c.config.command = command("id")) as Box<dyn Fn(&mut Container)>),
        ("another value of a variable", Box::new(|c| c.config.envs[0].value = "blue".to_owned())),
        ("a variable more", Box::new(|c| *c = c.clone().env("LD_PRELOAD", "/scratch/evil.so"))),
        ("a variable twice", Box::new(|c| *c = c.clone().env("COLOUR", "blue"))),
        (
            "a folder of the node's in place of the ConfigMap",
            Box::new(move |c| c.config.mounts[0].host_path = other.path.display().to_string()),
        ),
        ("the ConfigMap over a program's folder", Box::new(|c| c.config.mounts[0].container_path = "/bin".to_owned())),
        (
            "all capabilities",
            Box::new(|c| {
                *c = c.clone().secured(|s| s.capabilities.get_or_insert_default().add_capabilities.push("ALL".to_owned()));
            }),
        ),
        ("another user", Box::new(|c| *c = c.clone().user(1000, None))),
        (
            "another name",
            Box::new(|c| {
                c.config.metadata.as_mut().unwrap().name = "other".to_owned();
            }),
        ),
    ]) {
        let mut container = pod.container(attempt);
        change(&mut container);
        pod.refuses(what, container).await;
    }

    let web = pod.running.start(pod.container(0)).await.unwrap();
    web.logs("red\n").await.unwrap();
    assert_eq!(web.output("stdout").unwrap(), b"good morning\nred\n");
    let probe = web.exec(&["cat", "/settings/greeting"], 20).await.unwrap();
    assert_eq!((probe.exit_code, &*probe.stdout), (0, &b"good morning\n"[..]));
    let refused = web.exec(&["cat", "/scratch/colour"], 20).await.unwrap_err();
    assert!(refused.message().contains("ExecProcessRequest"), "{refused}");
    pod.story.clean_up().await.unwrap();
    drop(pod);
}
