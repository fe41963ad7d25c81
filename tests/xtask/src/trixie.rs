//! skopeo and cosign of Debian trixie, which encrypted and signed images are held against; nothing is installed.
//!
//! bookworm's skopeo can neither use a key provider nor make signatures of sigstore, and bookworm has no cosign. Theirs run on it with
//! trixie's C library, unpacked beside them: the scripts in `bin/` start each by its own loader.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::stage::{Stages, output};
use crate::{binaries, debian};

/// The variable that tells tests where they are: `bin/skopeo` and `bin/cosign` below it.
pub(crate) const VARIABLE: &str = "PEERPODS_TRIXIE";

const SUITE: &str = "trixie";

/// The tools, how the versions begin that the tests are about, and what makes each say something. Which version it is only its package tells:
/// Debian's cosign calls itself `devel`.
const TOOLS: [(&str, &str, &str); 2] = [("skopeo", "1.18.", "--version"), ("cosign", "2.", "version")];

/// The tools and the libraries that they link. `gpg`, which libgpgme starts, is this machine's own.
const PACKAGES: [&str; 7] = ["skopeo", "cosign", "libc6", "libgpgme11t64", "libassuan9", "libgpg-error0", "libsqlite3-0"];

/// The file that lists packages and versions.
const LIST: &str = "packages";

/// Makes sure that they are there, fetching what is not; gives the folder that holds them.
pub(crate) fn ensure(stages: &mut Stages) -> Result<PathBuf, String> {
    stages.run("skopeo and cosign of Debian trixie", || {
        let folder = binaries::trixie_folder()?;
        if versions(&folder).is_err() {
            fetch(&folder)?;
        }
        for package in versions(&folder)? {
            println!("    {package}");
        }
        Ok(folder)
    })
}

fn fetch(folder: &Path) -> Result<(), String> {
    let (apt, new) = (folder.with_extension("apt"), folder.with_extension("new"));
    let failed = |error| format!("{}: {error}", new.display());
    let _ = std::fs::remove_dir_all(&new);
    let packages = debian::unpack(SUITE, &PACKAGES, &apt, &new)?;
    std::fs::write(new.join(LIST), packages.join("\n") + "\n").map_err(failed)?;
    std::fs::create_dir(new.join("bin")).map_err(failed)?;
    for (tool, ..) in TOOLS {
        let script = new.join("bin").join(tool);
        std::fs::write(&script, wrapper(tool)).map_err(failed)?;
        std::fs::set_permissions(&script, Permissions::from_mode(0o755)).map_err(failed)?;
    }
    versions(&new)?;
    let _ = std::fs::remove_dir_all(folder);
    std::fs::rename(&new, folder).map_err(failed)?;
    let _ = std::fs::remove_dir_all(&apt);
    Ok(())
}

/// Programs that the tool starts are of this machine, so its libraries must not come by a variable.
fn wrapper(tool: &str) -> String {
    format!(
        "#!/bin/sh\nroot=${{0%/bin/{tool}}}\nlib=$root/usr/lib/x86_64-linux-gnu\n\
         exec \"$lib/ld-linux-x86-64.so.2\" --library-path \"$lib\" \"$root/usr/bin/{tool}\" \"$@\"\n"
    )
}

/// The tools' packages, if each tool starts and is of a version that is wanted.
fn versions(folder: &Path) -> Result<Vec<String>, String> {
    let list = folder.join(LIST);
    let list = std::fs::read_to_string(&list).map_err(|e| format!("{}: {e}", list.display()))?;
    let checked = |(tool, wanted, argument): &(&str, &str, &str)| {
        let program = folder.join("bin").join(tool);
        output(Command::new(program).arg(argument))?;
        let package = list.lines().find(|line| line.strip_prefix(tool).is_some_and(|rest| rest.starts_with(&format!(" {wanted}"))));
        package.map(str::to_owned).ok_or_else(|| format!("{SUITE} has no {tool} {wanted}x: {}", list.replace('\n', ", ")))
    };
    TOOLS.iter().map(checked).collect()
}
