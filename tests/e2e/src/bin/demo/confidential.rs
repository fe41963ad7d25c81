//! The use cases of the first Confidential Containers release, in a VM that is measured from its firmware on, and attacks on them.
//!
//! The owner of a workload has keys, a relying party and tools; the node has containerd and our daemons, and is not trusted:
//!
//! 1. a sample image, signed;
//! 2. an image that was encrypted before;
//! 4. an image that is built, encrypted by Debian's skopeo through our key provider, signed by Debian's cosign, and deployed.
//!
//! (Use case 3 is the same on confidential hardware.) The TPM is a program on this host: the protocol is real, the protection is not.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, bail, ensure};
use peerpods_e2e::{
    Container, Handler, Image, Level, RelyingParty, Rig, RigOptions, RunningPod, Story, TeeUnderTest, Version, WorldOptions,
    binaries_folder, image_folder, trixie_folder,
};
use serde_json::{Value, json};

use crate::on_rig;
use crate::say::{phase, show, timed};

/// What only the pod may read.
const SECRET: &str = "the recipe of the sauce";
/// What the agent policy lets the node do: nothing beyond making containers and reading their output.
const POLICY: &str = include_str!("../../../../../pod-vm-image/agent/src/policy/strict_default.rego");
/// What a node would rather have.
const LET_ALL: &str = include_str!("../../../../../pod-vm-image/agent/src/policy/built_in_default.rego");
/// Claims that the owner pins: boot application, initrd, and the parts of the image.
const PINNED: [&str; 3] = ["pcr04", "pcr09", "pcr11"];

/// The owner's folder and tools.
struct Owner {
    folder: tempfile::TempDir,
    tools: PathBuf,
}

pub(crate) async fn story() -> Result<()> {
    let measurements = measurements()?;
    let pins: String = measurements.iter().map(|(claim, value)| format!("{claim} = [\"{value}\"]\n")).collect();
    let mut options = WorldOptions::new(Level::Qemu);
    options.provider_extra = "firmware = \"uefi\"\nmeasured = true\nscratch_mib = 256\n".to_owned();
    options.class = ("tpm", format!("instance_types = [\"local.medium\"]\n[class.default.reference_values]\n{pins}"));
    let rig = phase("start a registry, the controller, the node daemon and containerd; pod VMs have UEFI and a TPM", || {
        Rig::start(&RigOptions::new(Version::V2, options))
    })?;
    println!("    the image's measurements, told without booting it:");
    for (claim, value) in &measurements {
        println!("    | {claim} {value}");
    }
    on_rig(rig, async |rig| told(rig, measurements).await).await
}

/// What the image's manifest predicts.
fn measurements() -> Result<Vec<(String, String)>> {
    let path = image_folder()?.join("manifest.json");
    let manifest: Value = serde_json::from_slice(&std::fs::read(&path).with_context(|| path.display().to_string())?)?;
    let of = |claim: &str| {
        let value = &manifest["measurements"][claim];
        let text = value.as_str().or_else(|| value[0].as_str()).with_context(|| format!("{} predicts no {claim}", path.display()))?;
        Ok((claim.to_owned(), text.to_owned()))
    };
    PINNED.into_iter().map(of).collect()
}

async fn told(rig: &Arc<Rig>, measurements: Vec<(String, String)>) -> Result<()> {
    let world = rig.world();
    let owner = Owner::new()?;
    let party = phase("the owner starts a relying party, which releases nothing yet", || {
        RelyingParty::start(world, TeeUnderTest::Tpm(measurements))
    })?;
    let initdata = party.initdata(world, POLICY)?;
    phase("the owner signs a sample image with Debian's cosign (use case 1)", || {
        owner.make_signing_key()?;
        push(rig, "sample", &Image::busybox(&[("www/index.html", b"a sample\n")])?)?;
        owner.sign(rig, "sample")
    })?;
    phase("an image was encrypted before, with a key that the relying party has (use case 2)", || {
        let key = [0x42; 32];
        let image = Image::busybox(&[("www/index.html", SECRET.as_bytes())])?;
        push(rig, "existing", &image.encrypted(&key, "kbs:///default/key/existing")?)?;
        party.set_resource(world, "default/key/existing", &key)?;
        owner.sign(rig, "existing")
    })?;
    phase(
        "the owner builds an image, encrypts it with Debian's skopeo through our key provider, signs and pushes it (use case 4)",
        || {
            push(rig, "built", &Image::busybox(&[("www/index.html", SECRET.as_bytes())])?)?;
            owner.encrypt(rig, "built", "secret", "kbs:///default/key/secret")?;
            party.set_resource(world, "default/key/secret", &std::fs::read(owner.kek())?)?;
            owner.sign(rig, "secret")
        },
    )?;
    phase("the owner's rules: images must be signed; keys only for this pod VM image with this initdata", || {
        let rule =
            json!([{"type": "sigstoreSigned", "keyPath": "kbs:///default/cosign/key", "signedIdentity": {"type": "matchRepository"}}]);
        let images = json!({"default": [{"type": "reject"}], "transports": {"docker": {world.registry_host(): rule}}});
        party.set_resource(world, "default/security-policy/images", images.to_string().as_bytes())?;
        party.set_resource(world, "default/cosign/key", &std::fs::read(owner.folder.path().join("cosign.pub"))?)?;
        party.set_resource(world, "default/app/token", SECRET.as_bytes())?;
        party.release_to(world, &initdata)
    })?;

    let story = Story::begin(Arc::clone(rig), Handler::PeerPods, "demo").await?;
    let begin = SystemTime::now();
    let run = story.pod("good").initdata(&initdata).run();
    let pod = timed("RunPodSandbox: boot with UEFI and TPM, attest (nonce, PCRs, event log), bind with the owner's initdata", run).await?;
    use_cases(&pod).await?;
    println!("    three use cases {:.1} s after RunPodSandbox", begin.elapsed().unwrap_or_default().as_secs_f64());
    attacks_on_images(&owner, rig, &pod).await?;
    timed("StopPodSandbox, RemovePodSandbox", story.clean_up()).await?;
    attacks_by_the_node(&story, &initdata).await?;
    timed("StopPodSandbox, RemovePodSandbox", story.clean_up()).await?;
    phase("the pod VMs are gone", || world.wait_for_no_machines(Duration::from_secs(60)))
}

async fn use_cases(pod: &RunningPod) -> Result<()> {
    for (name, image, what) in [
        ("sample", "sample", "use case 1: the guest verifies the signature, pulls, runs"),
        ("existing", "existing", "use case 2: the guest attests to the relying party, gets the key, decrypts, runs"),
        ("secret", "secret", "use case 4: the same with what skopeo encrypted"),
    ] {
        let container = Container::of_image(name, image).with(|c| c.command = command("cat /www/index.html"));
        let running = timed(what, pod.start(container)).await?;
        running.is_over().await?;
        let output = running.output("stdout")?;
        show(&output);
        ensure!(name == "sample" || output == SECRET.as_bytes(), "the container saw something else");
    }
    let script = "wget -q -O - http://127.0.0.1:8006/cdh/resource/default/app/token";
    let container = Container::of_image("api", "sample").with(|c| c.command = command(script));
    let running = timed("a workload asks its machine for a secret of the relying party", pod.start(container)).await?;
    running.is_over().await?;
    show(&running.output("stdout")?);
    ensure!(running.output("stdout")? == SECRET.as_bytes(), "the workload got something else");
    Ok(())
}

fn command(script: &str) -> Vec<String> {
    ["/bin/sh", "-c", script].map(str::to_owned).to_vec()
}

/// What somebody with the registry can try.
async fn attacks_on_images(owner: &Owner, rig: &Rig, pod: &RunningPod) -> Result<()> {
    let world = rig.world();
    push(rig, "unsigned", &Image::busybox(&[("www/index.html", b"evil\n")])?)?;
    refused("an image that nobody signed", pod, "unsigned", "sign").await?;
    // The layers of the sample, which are in the guest's store, by a manifest that nobody signed.
    let mut known = Image::busybox(&[("www/index.html", b"a sample\n")])?;
    known.command = vec!["/bin/evil".to_owned()];
    push(rig, "renamed", &known)?;
    refused("an unsigned tag whose layers the guest has already", pod, "renamed", "sign").await?;
    let image = Image::busybox(&[("www/late", SECRET.as_bytes())])?.encrypted(&[0x42; 32], "kbs:///default/key/existing")?;
    let digest = image.layers.last().context("a layer")?.digest();
    push(rig, "sample", &image)?;
    owner.sign(rig, "sample")?;
    flip_last_byte(world.registry().folder(), &digest)?;
    refused("the last byte of an encrypted layer was changed: nothing is decrypted, nothing unpacked", pod, "sample", "digest").await
}

/// What the node can try: it may bind a VM with whatever it likes.
async fn attacks_by_the_node(story: &Story, initdata: &str) -> Result<()> {
    let other = initdata.replacen("[data]", "# another word\n[data]", 1);
    let pod = timed("attack: the node changes the owner's initdata by a comment", story.pod("changed").initdata(&other).run()).await?;
    refused("it is bound, attested, gets a token, and is refused the key", &pod, "secret", "refuses").await?;
    timed("StopPodSandbox, RemovePodSandbox", story.clean_up()).await?;
    let signed: String =
        initdata.lines().filter(|line| line.starts_with("image_security_policy_uri")).map(|line| format!("{line}\n")).collect();
    let own = initdata.replace(POLICY, LET_ALL).replace(&signed, "");
    ensure!(own.contains(LET_ALL) && !own.contains("image_security_policy_uri"), "the initdata is not as this attack expects it");
    let what = "attack: the node binds initdata of its own, which lets it run programs in the pod and wants no signatures";
    let pod = timed(what, story.pod("own").initdata(&own).run()).await?;
    refused("it is bound, attested, gets a token, and is refused the key", &pod, "secret", "kbs:///default/key/").await
}

/// Shows why there is no such container.
async fn refused(what: &str, pod: &RunningPod, image: &str, because: &str) -> Result<()> {
    // A container that was never created keeps its name with containerd for a while.
    static ATTACKS: AtomicUsize = AtomicUsize::new(1);
    let name = format!("attack-{}", ATTACKS.fetch_add(1, Ordering::Relaxed));
    let container = Container::of_image(&name, image).with(|c| c.command = command("cat /www/index.html"));
    let begin = SystemTime::now();
    match pod.try_start(container).await {
        Ok(_) => bail!("{what}: the container runs"),
        Err(status) => {
            println!("  attack: {what} ... {} ms", begin.elapsed().unwrap_or_default().as_millis());
            println!("    refused: {}", status.message());
            ensure!(status.message().contains(because), "the reason does not speak of {because:?}");
            Ok(())
        }
    }
}

fn push(rig: &Rig, name: &str, image: &Image) -> Result<()> {
    rig.world().registry().push(rig.world().netns(), name, "1", image).map(drop)
}

/// Changes a blob where the registry keeps it, as somebody who has the registry can.
fn flip_last_byte(registry: &Path, digest: &str) -> Result<()> {
    let hex = digest.strip_prefix("sha256:").context("a SHA-256")?;
    let path = registry.join(format!("docker/registry/v2/blobs/sha256/{}/{hex}/data", &hex[..2]));
    let mut bytes = std::fs::read(&path).with_context(|| path.display().to_string())?;
    *bytes.last_mut().context("an empty layer")? ^= 1;
    Ok(std::fs::write(path, bytes)?)
}

impl Owner {
    fn new() -> Result<Self> {
        Ok(Self { folder: tempfile::Builder::new().prefix("pp-owner").tempdir()?, tools: trixie_folder()? })
    }

    fn kek(&self) -> PathBuf {
        self.folder.path().join("kek")
    }

    fn make_signing_key(&self) -> Result<()> {
        let mut command = Command::new(self.tools.join("bin/cosign"));
        command.args(["generate-key-pair"]).current_dir(self.folder.path()).env("COSIGN_PASSWORD", "");
        run(&mut command)
    }

    fn sign(&self, rig: &Rig, name: &str) -> Result<()> {
        let mut command = rig.world().netns().command(self.tools.join("bin/cosign"));
        command.args(["sign", "--yes", "--tlog-upload=false", "--allow-http-registry", "--allow-insecure-registry", "--key"]);
        command.arg(self.folder.path().join("cosign.key")).arg(rig.image(name)).env("COSIGN_PASSWORD", "").env("HOME", self.folder.path());
        run(&mut command)
    }

    fn encrypt(&self, rig: &Rig, from: &str, to: &str, uri: &str) -> Result<()> {
        let provider = json!({"key-providers": {"attestation-agent": {"cmd": {
            "path": binaries_folder()?.join("peerpodctl"), "args": ["keyprovider", "--once", "--create"]}}}});
        let config = self.folder.path().join("ocicrypt.json");
        std::fs::write(&config, provider.to_string())?;
        let kek = self.kek();
        let mut command = rig.world().netns().command(self.tools.join("bin/skopeo"));
        command.args(["copy", "--insecure-policy", "--src-tls-verify=false", "--dest-tls-verify=false", "--encryption-key"]);
        command.arg(format!("provider:attestation-agent:keyid={uri}::keypath={}::algorithm=A256GCM", kek.display()));
        command.arg(format!("docker://{}", rig.image(from))).arg(format!("docker://{}", rig.image(to)));
        command.env("OCICRYPT_KEYPROVIDER_CONFIG", &config).env("HOME", self.folder.path());
        run(&mut command)
    }
}

fn run(command: &mut Command) -> Result<()> {
    let out = command.output().with_context(|| format!("{:?}", command.get_program()))?;
    ensure!(out.status.success(), "{:?}: {}", command.get_program(), String::from_utf8_lossy(&out.stderr));
    Ok(())
}
