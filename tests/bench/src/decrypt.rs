//! Pulling an encrypted image: how much slower than a plain one, beside skopeo, and what memory it takes.

use std::process::Command;
use std::time::Instant;

use anyhow::{Result, ensure};
use peerpods_e2e::{Image, Level, RelyingParty, TeeUnderTest, World, WorldOptions, binaries_folder, trixie_folder};
use serde_json::json;

use crate::figure::{Budget, Figure};
use crate::pull::{Pull, pull};

/// The image's size: one file that does not compress.
const MIB: usize = 512;
const KEY: [u8; 32] = [9; 32];
const KEY_NAME: &str = "default/key/bulky";

/// A plain image, the same encrypted, each in a pod VM of its own; then skopeo decrypts into a folder.
pub(crate) async fn run() -> Result<Vec<Figure>> {
    let mut world = World::start(&WorldOptions::new(Level::Sandbox))?;
    let bulky = Image::bulky(MIB << 20)?;
    world.registry().push(world.netns(), "plain", "1", &bulky)?;
    world.registry().push(world.netns(), "secret", "1", &bulky.encrypted(&KEY, &format!("kbs:///{KEY_NAME}"))?)?;
    let party = RelyingParty::start(&world, TeeUnderTest::Sample)?;
    let anything = json!({"default": [{"type": "insecureAcceptAnything"}]}).to_string();
    party.set_resource(&world, "default/security-policy/images", anything.as_bytes())?;
    party.set_resource(&world, KEY_NAME, &KEY)?;
    let policy = include_str!("../../../pod-vm-image/agent/src/policy/built_in_default.rego");
    let initdata = party.initdata(&world, policy)?;
    party.release_to(&world, &initdata)?;
    let plain = pull(&mut world, &initdata, "plain", 1).await?;
    let Pull { secs, idle, peak, disk } = pull(&mut world, &initdata, "secret", 2).await?;
    let skopeo = skopeo_secs(&world)?;
    #[allow(clippy::cast_precision_loss)]
    let size = MIB as f64;
    let figure = |name: &str, value, unit, baseline: &str, baseline_value| Figure {
        name: format!("{name} of a {MIB} MiB image"),
        value,
        unit,
        baseline: baseline.to_owned(),
        baseline_value,
        budget: Budget::None,
    };
    let speed = "pull, attestation, decryption and unpacking";
    Ok(vec![
        figure(speed, size / secs, "MiB/s", "the same image, not encrypted", size / plain.secs),
        figure(speed, size / secs, "MiB/s", "skopeo decrypts it into a folder and unpacks nothing", size / skopeo),
        figure("pull with decryption, peak above idle,", peak - idle, "MiB", "not encrypted", plain.peak - plain.idle),
        figure("pull with decryption, disk at its fullest,", disk, "MiB", "not encrypted", plain.disk),
    ])
}

fn skopeo_secs(world: &World) -> Result<f64> {
    let folder = tempfile::tempdir_in(world.folder())?;
    let key = folder.path().join("key");
    std::fs::write(&key, KEY)?;
    let provider = json!({"key-providers": {"attestation-agent": {"cmd": {
        "path": binaries_folder()?.join("peerpodctl"), "args": ["keyprovider", "--once"]}}}});
    let config = folder.path().join("ocicrypt.json");
    std::fs::write(&config, provider.to_string())?;
    let mut command: Command = world.netns().command(trixie_folder()?.join("bin/skopeo"));
    command.args(["copy", "--insecure-policy", "--src-tls-verify=false", "--decryption-key"]);
    command.arg(format!("provider:attestation-agent:keyid=kbs:///{KEY_NAME}::keypath={}", key.display()));
    command.arg(format!("docker://127.0.0.1:{}/secret:1", world.registry().port()));
    command.arg(format!("dir:{}", folder.path().join("out").display()));
    command.env("OCICRYPT_KEYPROVIDER_CONFIG", &config).env("HOME", folder.path());
    let begin = Instant::now();
    let out = command.output()?;
    ensure!(out.status.success(), "skopeo: {}", String::from_utf8_lossy(&out.stderr));
    Ok(begin.elapsed().as_secs_f64())
}
