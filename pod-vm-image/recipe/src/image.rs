//! Building an image, and renewing its pins.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};

use crate::archive::{Archive, Freshness, Index, KERNEL_SUITE, Package, STABLE_SUITE};
use crate::cache::Cache;
use crate::kernel::Kernel;
use crate::manifest::{FILE_NAME, File, Manifest};
use crate::pins::{Pin, Pins, Role};
use crate::upstream::{self, Program};
use crate::{certificates, disk, initrd, measure, modules, package, sha256_hex, uki};

/// The kernel command line. A panic ends the machine at once; the console carries only what somebody must see.
pub const CMDLINE: &str = "console=ttyS0 quiet panic=-1 reboot=t";

/// The largest image that we call one: `uki.efi`, which holds all of it in compressed form.
pub const LARGEST_UKI: usize = 64 << 20;

/// Which inputs an image may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Inputs {
    /// The pinned ones only.
    Pinned,
    /// The archive's present ones where a pinned one is gone.
    PinnedOrCurrent,
}

/// What of an image is the builder's own.
#[derive(Debug, Clone, Copy)]
pub struct Binaries<'a> {
    /// The guest.
    pub guest: &'a Path,
    /// The file that names the programs of the upstream profile ([`upstream::read`]); `None` for an image with our own agent.
    pub upstream: Option<&'a Path>,
}

/// Fetches the inputs and packs the image into `out`.
pub fn build(pins: &Pins, binaries: Binaries<'_>, out: &Path, archive: Option<&str>, inputs: Inputs) -> Result<Manifest> {
    // First of all: nobody may take the leftovers of a failed build for an image.
    std::fs::create_dir_all(out).with_context(|| format!("make {}", out.display()))?;
    remove_if_there(&out.join(FILE_NAME))?;
    let guest = std::fs::read(binaries.guest).with_context(|| format!("read guest binary {}", binaries.guest.display()))?;
    ensure!(guest.starts_with(b"\x7fELF"), "the guest binary is not an ELF file");
    let upstream = binaries.upstream.map(upstream::read).transpose()?.unwrap_or_default();
    let cache = Cache::open_default()?;
    let (used, files) = fetch_or_replace(pins, &cache, archive, inputs)?;
    let unpacked = tempfile::Builder::new().prefix("peerpods-recipe").tempdir()?;
    for (pin, file) in used.packages.iter().zip(&files) {
        package::unpack(file, &unpacked.path().join(format!("{:?}", pin.role)))?;
    }
    pack(unpacked.path(), guest, &upstream, &used, &used != pins, out)
}

/// The present packages of the archive as pins.
pub fn current_pins(cache: &Cache, archive: Option<&str>, freshness: Freshness) -> Result<Pins> {
    let index = Archive::locate(archive)?.read_index(cache, freshness)?;
    let mut packages = kernel_packages(&index)?;
    packages.push(pin(Role::Stub, index.newest(STABLE_SUITE, "systemd-boot-efi")?));
    packages.push(pin(Role::Certificates, index.newest(STABLE_SUITE, "ca-certificates")?));
    Ok(Pins { version: 1, packages })
}

/// Says which inputs changed, and which measurements with them.
pub fn describe_changes(old: &Pins, new: &Pins) -> String {
    let mut text = String::new();
    for role in Role::ALL {
        let of = |pins: &Pins| -> Vec<Pin> { pins.packages.iter().filter(|p| p.role == role).cloned().collect() };
        let (old, new) = (of(old), of(new));
        if old == new {
            continue;
        }
        let name = |pins: &[Pin]| pins.iter().map(|p| format!("{} {}", p.name, p.version)).collect::<Vec<_>>().join(", ");
        text.push_str(&format!("  was {}\n  is  {}\n  changes {}\n", name(&old), name(&new), role.measured_as()));
    }
    text
}

/// The concrete packages behind Debian's name for the newest cloud kernel. Since 7.x kernel, modules and configuration are
/// packages of their own; before, `linux-image-RELEASE` holds all.
fn kernel_packages(index: &Index) -> Result<Vec<Pin>> {
    let meta = index.newest(KERNEL_SUITE, "linux-image-cloud-amd64")?;
    let image = dependencies(meta)
        .find(|d| d.strip_prefix("linux-image-").is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit())))
        .context("linux-image-cloud-amd64 depends on no kernel")?;
    let release = image.trim_start_matches("linux-image-").to_owned();
    let image = index.newest(KERNEL_SUITE, &image)?;
    let mut parts = Vec::new();
    for name in dependencies(image).filter(|d| d.starts_with("linux-") && d.ends_with(&release)) {
        parts.push(pin(Role::Kernel, index.newest(KERNEL_SUITE, &name)?));
    }
    if parts.is_empty() {
        parts.push(pin(Role::Kernel, image));
    }
    parts.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(parts)
}

fn dependencies(package: &Package) -> impl Iterator<Item = String> {
    package.depends.split([',', '|']).filter_map(|d| d.split_whitespace().next()).map(str::to_owned)
}

fn pin(role: Role, package: &Package) -> Pin {
    Pin {
        role,
        name: package.name.clone(),
        version: package.version.clone(),
        path: package.path.clone(),
        size: package.size,
        sha256: package.sha256.clone(),
    }
}

/// The files of the pinned packages, or those of the archive's present ones.
fn fetch_or_replace(pins: &Pins, cache: &Cache, archive: Option<&str>, inputs: Inputs) -> Result<(Pins, Vec<PathBuf>)> {
    if let Some(files) = fetch(pins, cache, archive)? {
        return Ok((pins.clone(), files));
    }
    if inputs == Inputs::Pinned {
        bail!("a pinned package could not be had; if the archive has moved on, run `peerpods-recipe update`, review and commit pins.toml");
    }
    println!("a pinned package could not be had; taking the archive's present ones:");
    let current = current_pins(cache, archive, Freshness::Tolerated)?;
    print!("{}", describe_changes(pins, &current));
    println!("this image is not pinned: nobody can rebuild it, and its measurements are its own");
    let files = fetch(&current, cache, archive)?.context("the archive does not have a package that its index names")?;
    Ok((current, files))
}

/// The packages' files, from the cache or the archive; `None` when the archive lacks one.
fn fetch(pins: &Pins, cache: &Cache, archive: Option<&str>) -> Result<Option<Vec<PathBuf>>> {
    let mut files = Vec::new();
    let mut located = None;
    for (index, pin) in pins.packages.iter().enumerate() {
        let label = format!("[{}/{}] {} {}", index + 1, pins.packages.len(), pin.name, pin.version);
        if let Some(file) = cache.find(&pin.sha256)? {
            println!("{label}: in the cache");
            files.push(file);
            continue;
        }
        println!("{label}: downloading {}", mib(pin.size));
        let archive = match &located {
            Some(archive) => archive,
            None => located.insert(Archive::locate(archive)?),
        };
        let Some(file) = archive.download(cache, pin)? else { return Ok(None) };
        files.push(file);
    }
    Ok(Some(files))
}

/// Packs unpacked packages (one folder a role), a guest binary and upstream's. A pure function of its inputs but for the folder it writes.
fn pack(unpacked: &Path, guest: Vec<u8>, upstream: &[Program], inputs: &Pins, unpinned: bool, out: &Path) -> Result<Manifest> {
    let folder = |role: Role| unpacked.join(format!("{role:?}"));
    println!("kernel: check its configuration, unpack it");
    let kernel = Kernel::open(&folder(Role::Kernel))?;
    kernel.check()?;
    let vmlinux = kernel.vmlinux()?;
    println!("initrd: modules, certificates, guest ({})", mib(guest.len() as u64));
    let modules = modules::collect(&kernel.modules)?;
    let guest_sha256 = sha256_hex(&guest);
    for program in upstream {
        println!("initrd: upstream's {} ({})", program.name, mib(program.content.len() as u64));
    }
    let archive = initrd::archive(guest, modules, certificates::bundle(&folder(Role::Certificates))?, upstream)?;
    println!("initrd: compress {}", mib(archive.len() as u64));
    let initrd = initrd::compress(&archive)?;
    println!("uki: stub, kernel, initrd");
    let stub = package::file_named(&folder(Role::Stub), "linuxx64.efi.stub")?;
    let uki = uki::build(&uki::Parts {
        stub: &std::fs::read(stub)?,
        linux: &kernel.vmlinuz,
        initrd: &initrd,
        cmdline: CMDLINE,
        release: &kernel.release,
        os_release: &format!("ID=peerpods\nNAME=\"Peerpods pod VM\"\nVERSION_ID={}\n", env!("CARGO_PKG_VERSION")),
    })?;
    ensure!(uki.len() <= LARGEST_UKI, "the image has {}, more than {}", mib(uki.len() as u64), mib(LARGEST_UKI as u64));
    let measurements = measure::predict(&uki).context("predict the image's measurements")?;
    let mut files = BTreeMap::new();
    println!("disk: partition table, EFI system partition");
    let disk = disk::build(&uki)?;
    for (name, content) in [("vmlinux", &vmlinux), ("initrd", &initrd), ("uki.efi", &uki), ("disk.raw", &disk)] {
        let size = content.len() as u64;
        println!("  {name:8} {:>10}", mib(size));
        write_whole(&out.join(name), content)?;
        files.insert(name.to_owned(), File { sha256: sha256_hex(content), size });
    }
    let manifest = Manifest {
        version: 1,
        cmdline: CMDLINE.to_owned(),
        kernel: kernel.release,
        files,
        measurements: Some(measurements.reference_values()),
        guest_sha256,
        upstream: upstream.iter().map(|program| (program.name.to_owned(), program.sha256.clone())).collect(),
        inputs: inputs.packages.clone(),
        unpinned,
    };
    write_whole(&out.join(FILE_NAME), format!("{}\n", serde_json::to_string_pretty(&manifest)?).as_bytes())?;
    Ok(manifest)
}

/// Writes beside and renames: a machine that boots from this folder meanwhile keeps the old file.
fn write_whole(path: &Path, content: &[u8]) -> Result<()> {
    let part = path.with_added_extension("part");
    std::fs::write(&part, content).with_context(|| format!("write {}", part.display()))?;
    std::fs::rename(&part, path).with_context(|| format!("write {}", path.display()))
}

fn remove_if_there(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e).with_context(|| format!("remove {}", path.display())),
        _ => Ok(()),
    }
}

fn mib(bytes: u64) -> String {
    let tenths = bytes * 10 / (1 << 20);
    format!("{}.{} MiB", tenths / 10, tenths % 10)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture;
    use crate::pins::BUILT_IN;

    fn pack_in(folder: &Path, guest: &[u8]) -> Result<Manifest> {
        pack_with(folder, guest, &[])
    }

    fn pack_with(folder: &Path, guest: &[u8], upstream: &[Program]) -> Result<Manifest> {
        let (unpacked, out) = (folder.join("unpacked"), folder.join("out"));
        fixture::write_packages(&unpacked);
        std::fs::create_dir_all(&out)?;
        pack(&unpacked, guest.to_vec(), upstream, &Pins::parse(BUILT_IN)?, false, &out)
    }

    #[test]
    fn packing_in_another_folder_gives_the_same_bytes() {
        let (one, two) = (tempfile::tempdir().expect("folder"), tempfile::tempdir().expect("folder"));
        let deeper = two.path().join("a folder/with another name");
        let first = pack_in(one.path(), b"guest").expect("pack");
        let second = pack_in(&deeper, b"guest").expect("pack");
        assert_eq!(first, second);
        for name in ["vmlinux", "initrd", "uki.efi", "disk.raw", FILE_NAME] {
            let read = |folder: &Path| std::fs::read(folder.join("out").join(name)).expect(name);
            assert_eq!(read(one.path()), read(&deeper), "{name}");
        }
    }

    #[test]
    fn manifest_tells_the_digests_of_the_files() {
        let folder = tempfile::tempdir().expect("folder");
        let manifest = pack_in(folder.path(), b"guest").expect("pack");
        assert_eq!(manifest.files.keys().collect::<Vec<_>>(), ["disk.raw", "initrd", "uki.efi", "vmlinux"]);
        for (name, file) in &manifest.files {
            let bytes = std::fs::read(folder.path().join("out").join(name)).expect("file");
            assert_eq!((file.sha256.as_str(), file.size), (sha256_hex(&bytes).as_str(), bytes.len() as u64));
        }
        let text = std::fs::read(folder.path().join("out").join(FILE_NAME)).expect("manifest");
        assert_eq!(serde_json::from_slice::<Manifest>(&text).expect("json"), manifest);
    }

    #[test]
    fn another_guest_changes_initrd_and_uki_and_nothing_else() {
        let (one, two) = (tempfile::tempdir().expect("folder"), tempfile::tempdir().expect("folder"));
        let first = pack_in(one.path(), b"guest").expect("pack");
        let second = pack_in(two.path(), b"other").expect("pack");
        assert_eq!(first.files["vmlinux"], second.files["vmlinux"]);
        assert_ne!(first.files["initrd"], second.files["initrd"]);
        assert_ne!(first.files["uki.efi"], second.files["uki.efi"]);
        assert!(first.measurements.is_some() && first.measurements != second.measurements);
    }

    #[test]
    fn manifest_without_measurements_is_read() {
        let folder = tempfile::tempdir().expect("folder");
        let manifest = Manifest { measurements: None, ..pack_in(folder.path(), b"guest").expect("pack") };
        let text = serde_json::to_string(&manifest).expect("JSON");
        assert!(!text.contains("measurements"), "{text}");
        assert_eq!(serde_json::from_str::<Manifest>(&text).expect("manifest"), manifest);
    }

    #[test]
    fn failed_build_leaves_no_manifest() {
        let folder = tempfile::tempdir().expect("folder");
        std::fs::write(folder.path().join(FILE_NAME), "{}").expect("an older image");
        let pins = Pins::parse(BUILT_IN).expect("pins");
        let binaries = Binaries { guest: &folder.path().join("absent"), upstream: None };
        assert!(build(&pins, binaries, folder.path(), None, Inputs::Pinned).is_err());
        assert!(!folder.path().join(FILE_NAME).exists());
    }

    #[test]
    fn upstream_programs_are_packed_where_upstream_has_them() {
        let (folder, files) = (tempfile::tempdir().expect("folder"), tempfile::tempdir().expect("folder"));
        let programs = upstream::read(&fixture::write_upstream(files.path())).expect("programs");
        let manifest = pack_with(folder.path(), b"guest", &programs).expect("pack");
        let expected: BTreeMap<_, _> = programs.iter().map(|program| (program.name.to_owned(), program.sha256.clone())).collect();
        assert_eq!((manifest.upstream.len(), &manifest.upstream), (4, &expected));
        let initrd = zstd::decode_all(&*std::fs::read(folder.path().join("out/initrd")).expect("initrd")).expect("decode");
        let has = |bytes: &[u8]| initrd.windows(bytes.len()).any(|window| window == bytes);
        for name in ["usr/local/bin/kata-agent\0", "etc/peerpods/upstream.toml\0", "pause_bundle/rootfs/pause\0", "version = 1\n"] {
            assert!(has(name.as_bytes()), "{name:?}");
        }
        let without = tempfile::tempdir().expect("folder");
        let ours = pack_in(without.path(), b"guest").expect("pack");
        assert!(ours.upstream.is_empty() && ours.files["uki.efi"] != manifest.files["uki.efi"]);
    }

    #[test]
    fn upstream_program_that_is_not_the_one_meant_leaves_nothing() {
        let (folder, files) = (tempfile::tempdir().expect("folder"), tempfile::tempdir().expect("folder"));
        let guest = files.path().join("guest");
        std::fs::write(&guest, fixture::program(None)).expect("guest");
        let file = fixture::write_upstream(files.path());
        std::fs::write(files.path().join("kata-agent"), b"another").expect("change");
        let binaries = Binaries { guest: &guest, upstream: Some(&file) };
        let pins = Pins::parse(BUILT_IN).expect("pins");
        let error = build(&pins, binaries, folder.path(), None, Inputs::Pinned).expect_err("refused").to_string();
        assert!(error.contains("kata-agent") && error.contains(&sha256_hex(b"another")), "{error}");
        assert_eq!(std::fs::read_dir(folder.path()).expect("folder").count(), 0);
    }

    #[test]
    fn changes_are_described_with_what_they_change() {
        let old = Pins::parse(BUILT_IN).expect("pins");
        let mut new = old.clone();
        let stub = new.packages.iter_mut().find(|p| p.role == Role::Stub).expect("stub");
        stub.version = "999".to_owned();
        let text = describe_changes(&old, &new);
        assert!(text.contains("is  systemd-boot-efi 999") && text.contains("PCR 4") && !text.contains("linux-"), "{text}");
        assert_eq!(describe_changes(&old, &old), "");
    }
}
