//! moto, the EC2 that nobody here wrote, in a folder of its own.

use std::path::PathBuf;
use std::process::Command;

use crate::stage::{Stages, run};
use crate::{binaries, packages};

/// The variable that tells tests where `moto_server` is.
pub(crate) const VARIABLE: &str = "PEERPODS_MOTO";

/// The version that the list of its known faults is about (`cloud-providers/aws/tests/moto`).
const MOTO: &str = "moto[ec2,server]==5.2.5";

const PACKAGES: &[packages::Package] =
    &[packages::Package { name: "python3-venv", probe: "/usr/share/doc/python3-venv", why: "holds moto, a referee of the AWS provider" }];

/// Installs it where it is not yet, and gives the path of its server.
pub(crate) fn ensure(stages: &mut Stages) -> Result<PathBuf, String> {
    stages.run("moto", || {
        let folder = binaries::moto_folder()?;
        let (server, mark) = (folder.join("bin/moto_server"), folder.join(format!("{MOTO}.installed")));
        if mark.exists() {
            return Ok(server);
        }
        packages::ensure(&[PACKAGES])?;
        run(Command::new("/usr/bin/python3").args(["-m", "venv", "--clear"]).arg(&folder))?;
        run(Command::new(folder.join("bin/pip")).args(["install", "--quiet", "--disable-pip-version-check", MOTO]))?;
        std::fs::write(&mark, "").map_err(|error| format!("{}: {error}", mark.display()))?;
        Ok(server)
    })
}
