//! The confidential-containers pipeline: keys for this image and this initdata alone, images that are signed and encrypted, the workload
//! API. In sandboxes, whose evidence protects nothing: who judges it, and what follows, is all the same. `canaries.rs` looks for leaks.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use peerpods_e2e::{ContainerRequest, CosignKey, Image, KataShim, Level, RelyingParty, TeeUnderTest, World, WorldOptions};

const A: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
const B: &str = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";
const C: &str = "cccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccc";
const D: &str = "dddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd";

const KEK: &[u8; 32] = b"a wrapping key of thirty-two byt";
const KEK_NAME: &str = "default/key/web";
const PAGE: &str = "a page of the encrypted image";
const TOKEN: &str = "a resource of the broker";

/// A world with a relying party and images: `secret` (encrypted and signed), `plain` (signed), `unsigned`.
struct Owner {
    world: World,
    party: RelyingParty,
    initdata: String,
}

fn policy(name: &str) -> String {
    let path = format!("{}/../../pod-vm-image/agent/src/policy/{name}.rego", env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(path).unwrap()
}

impl Owner {
    fn new(agent_policy: &str) -> Self {
        let world = World::start(&WorldOptions::new(Level::Sandbox)).unwrap();
        let party = RelyingParty::start(&world, TeeUnderTest::Sample).unwrap();
        let signer = CosignKey::generate().unwrap();
        let push = |name: &str, image: &Image| world.registry().push(world.netns(), name, "1", image).unwrap();
        let secret = push(
            "secret",
            &Image::busybox(&[("www/index.html", PAGE.as_bytes())]).unwrap().encrypted(KEK, &format!("kbs:///{KEK_NAME}")).unwrap(),
        );
        signer.sign(&world, "secret", &secret).unwrap();
        let plain = push("plain", &Image::busybox(&[]).unwrap());
        signer.sign(&world, "plain", &plain).unwrap();
        push("unsigned", &Image::busybox(&[("www/other", b"x")]).unwrap());
        let rule = serde_json::json!([{"type": "sigstoreSigned", "keyPath": "kbs:///default/cosign/key", "signedIdentity": {"type": "matchRepository"}}]);
        let images = serde_json::json!({"default": [{"type": "reject"}], "transports": {"docker": {world.registry_host(): rule}}});
        party.set_resource(&world, "default/security-policy/images", images.to_string().as_bytes()).unwrap();
        party.set_resource(&world, "default/cosign/key", signer.public_pem().unwrap().as_bytes()).unwrap();
        party.set_resource(&world, KEK_NAME, KEK).unwrap();
        party.set_resource(&world, "default/app/token", TOKEN.as_bytes()).unwrap();
        let initdata = party.initdata(&world, agent_policy).unwrap();
        party.release_to(&world, &initdata).unwrap();
        Self { world, party, initdata }
    }

    async fn pod(&mut self, name: &str, seed: u64, initdata: &str) -> KataShim {
        let netns = self.world.add_pod().unwrap().netns().path();
        let mut shim = self.world.shim(name, seed);
        let socket = shim.create_vm(&netns, &[("cc_init_data", initdata)]).await.unwrap();
        shim.start_vm(&socket).await.unwrap();
        shim.create_sandbox().await.unwrap();
        shim
    }

    fn image(&self, name: &str) -> String {
        format!("{}/{name}:1", self.world.registry_host())
    }

    /// What the guest says why there is no such container.
    async fn refused(&self, shim: &KataShim, id: &str, image: &str) -> String {
        let request = ContainerRequest::new(id, &self.image(image), &["/bin/true"]);
        let error = shim.create_container(&request).await.expect_err("the container must not come to be");
        let text = format!("{error:#}");
        println!("{image}: {text}");
        text
    }

    async fn output(&self, shim: &KataShim, id: &str, image: &str, script: &str) -> String {
        let request = ContainerRequest::new(id, &self.image(image), &["/bin/sh", "-c", script]);
        shim.create_container(&request).await.unwrap();
        shim.start_container(id).await.unwrap();
        let io = shim.finish(id, "").await.unwrap();
        String::from_utf8_lossy(&io.stdout).into_owned() + &String::from_utf8_lossy(&io.stderr)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn encrypted_image_runs_and_unsigned_ones_and_other_initdata_are_refused() {
    let mut owner = Owner::new(&policy("built_in_default"));
    let initdata = owner.initdata.clone();
    let shim = owner.pod("good", 1, &initdata).await;
    let seen = owner.output(&shim, A, "secret", "cat /www/index.html").await;
    assert_eq!(seen.trim(), PAGE);
    assert!(owner.refused(&shim, B, "unsigned").await.contains("sign"));

    // The same layers, which are in the store by now, under a tag that nobody signed.
    let unsigned = Image::busybox(&[]).unwrap();
    owner.world.registry().push(owner.world.netns(), "nobody", "1", &unsigned).unwrap();
    assert_eq!(owner.output(&shim, C, "plain", "echo runs").await.trim(), "runs");
    assert!(owner.refused(&shim, D, "nobody").await.contains("sign"), "a warm store");
    drop(shim);

    // Another initdata that names the same broker, as a node may bind: it gets a token and no key.
    let other = format!("# a node's own\n{initdata}");
    let shim = owner.pod("other", 2, &other).await;
    let text = owner.refused(&shim, B, "secret").await;
    assert!(text.contains("PolicyDeny") || text.contains("refuses"), "{text}\n{}", owner.party.log_tail());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workload_api_gives_resources_and_evidence_and_keeps_the_tee_key() {
    let mut owner = Owner::new(&policy("built_in_default"));
    let initdata = owner.initdata.clone();
    let shim = owner.pod("api", 3, &initdata).await;
    let script = "wget -q -O - http://127.0.0.1:8006/cdh/resource/default/app/token; echo; \
        wget -q -O - 'http://127.0.0.1:8006/aa/evidence?runtime_data=abc' | head -c 20; echo; \
        wget -q -O - 'http://127.0.0.1:8006/aa/token?token_type=kbs' || echo refused";
    let seen = owner.output(&shim, A, "secret", script).await;
    assert!(seen.contains(TOKEN) && seen.contains("\"svn\"") && seen.contains("refused"), "{seen}");
}
