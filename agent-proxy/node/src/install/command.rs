//! The two commands as a person sees them: what changes, what to look at, what to do next.

use std::io::Write;
use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Args;

use super::{CONTAINERD_CONFIG, FileVersion, Installer, Outcome, SHIM, STATE_DIR, Wanted, add, containerd, find_program, runtime_class};
use crate::config::Config;

/// Where containerd's configuration is, and what it was.
#[derive(Debug, Args)]
pub struct Place {
    /// containerd's configuration
    #[arg(long, value_name = "FILE", default_value = CONTAINERD_CONFIG)]
    containerd_config: PathBuf,
    /// Where to keep what was there before
    #[arg(long, value_name = "FOLDER", default_value = STATE_DIR)]
    state_dir: PathBuf,
    /// Show what would change, and change nothing
    #[arg(long)]
    dry_run: bool,
}

/// Options of `install`.
#[derive(Debug, Args)]
pub struct InstallArgs {
    #[command(flatten)]
    place: Place,
    /// The runtime handler that pods name by their runtime class
    #[arg(long, default_value = "peer-pods", value_parser = handler)]
    handler: String,
    /// The shim's configuration; without it the shim takes its defaults
    #[arg(long, value_name = "FILE")]
    shim_config: Option<PathBuf>,
    /// containerd, to be asked what it makes of its configuration (default: from PATH)
    #[arg(long, value_name = "PROGRAM")]
    containerd: Option<PathBuf>,
    /// Replace entries of the same names that somebody else has made
    #[arg(long)]
    replace: bool,
    /// Print the entries for containerd 1.7 (2) or 2.x (3), and change nothing
    #[arg(long, value_name = "VERSION", value_parser = file_version)]
    print: Option<FileVersion>,
}

/// Puts our entries into containerd's configuration.
pub fn install(args: &InstallArgs, config: &Config, out: &mut impl Write) -> Result<()> {
    let Some(snapshotter) = &config.snapshotter else {
        bail!(
            "node.toml has no snapshotter; next: add [snapshotter] with socket = \"/run/peerpods/snapshotter.sock\" and state_dir = \
             \"/var/lib/peerpods/snapshots\", and start the node daemon again"
        );
    };
    let wanted = Wanted {
        handler: args.handler.clone(),
        snapshotter_socket: snapshotter.socket.clone(),
        shim_config: args.shim_config.as_ref().map(std::path::absolute).transpose()?,
    };
    if let Some(version) = args.print {
        let (text, _) = add("", &wanted, version, &[], false)?;
        write!(out, "{text}")?;
        return Ok(());
    }
    let path = std::env::var("PATH").unwrap_or_default();
    let program = args.containerd.clone().or_else(|| find_program("containerd", &path));
    let config = &args.place.containerd_config;
    let told = program.as_deref().and_then(containerd::file_version);
    let new_version = match told {
        Some(version) => version,
        // Only an existing file says by itself which version it has.
        None if config.exists() => FileVersion::V2,
        None => bail!(
            "there is neither {} nor a containerd in PATH that could say which version it reads; next: name it with --containerd",
            config.display()
        ),
    };
    match args.place.installer().install(&wanted, new_version, args.replace)? {
        Outcome::Changed(diff) if args.place.dry_run => {
            write!(out, "{diff}")?;
            writeln!(out, "\nNothing was changed (--dry-run).")?;
            return Ok(());
        }
        Outcome::Changed(diff) => {
            write!(out, "{diff}")?;
            writeln!(out, "\nChanged {}; `peerpods-node uninstall` brings back what was there.", config.display())?;
            writeln!(
                out,
                "use_local_image_pull is for the images of all runtimes: containerd 2.x chooses a snapshotter by runtime only with it."
            )?;
        }
        _ => writeln!(out, "{} has everything already.", config.display())?,
    }
    advise(args, program.as_deref(), &path, out)
}

/// Takes our entries out again.
pub fn uninstall(place: &Place, out: &mut impl Write) -> Result<()> {
    let outcome = place.installer().uninstall()?;
    let config = place.containerd_config.display();
    let Some(outcome) = outcome else {
        writeln!(out, "Nothing is installed: {} has no record.", place.state_dir.display())?;
        return Ok(());
    };
    match &outcome {
        Outcome::Restored(diff) | Outcome::TakenOut(diff) | Outcome::Changed(diff) => write!(out, "{diff}")?,
        Outcome::Removed | Outcome::Unchanged => {}
    }
    let done = match outcome {
        Outcome::Restored(_) => format!("{config} is as it was before, byte for byte."),
        Outcome::TakenOut(_) | Outcome::Changed(_) => format!("{config} was changed by somebody else too: only our entries are taken out."),
        Outcome::Removed => format!("{config} is removed: it was not there before."),
        Outcome::Unchanged => format!("{config} has none of our entries."),
    };
    writeln!(out, "{done}")?;
    match place.dry_run {
        true => writeln!(out, "Nothing was changed (--dry-run).")?,
        false => writeln!(out, "next: systemctl restart containerd, once no pod of this runtime is left")?,
    }
    Ok(())
}

impl Place {
    fn installer(&self) -> Installer {
        Installer::new(&self.containerd_config, &self.state_dir, self.dry_run)
    }
}

/// What else must be true, and what is to be done.
fn advise(args: &InstallArgs, program: Option<&std::path::Path>, path: &str, out: &mut impl Write) -> Result<()> {
    if find_program(SHIM, path).is_none() {
        writeln!(out, "warning: {SHIM} is in no folder of PATH; containerd must find it in its own, for example in /usr/local/bin")?;
    }
    match program.map(|program| containerd::has_runtime(program, &args.place.containerd_config, &args.handler)) {
        Some(Ok(true)) => writeln!(out, "containerd sees runtime {}.", args.handler)?,
        Some(Ok(false)) => writeln!(
            out,
            "warning: containerd does not see runtime {}: a file that its configuration imports replaces the table; next: put our entries, \
             as --print shows them, into that file",
            args.handler
        )?,
        Some(Err(why)) => writeln!(out, "warning: containerd does not read its configuration: {why}")?,
        None => {}
    }
    writeln!(out, "next: systemctl restart containerd\nnext: kubectl apply -f - <<END\n{}END", runtime_class(&args.handler))?;
    Ok(())
}

/// A handler is a DNS label, since a runtime class names it.
fn handler(text: &str) -> Result<String, String> {
    let is_label = (1..=63).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
        && !text.starts_with('-')
        && !text.ends_with('-');
    if is_label { Ok(text.to_owned()) } else { Err("a handler has 1 to 63 lower-case letters, digits and hyphens".to_owned()) }
}

fn file_version(text: &str) -> Result<FileVersion, String> {
    match text {
        "2" => Ok(FileVersion::V2),
        "3" => Ok(FileVersion::V3),
        _ => Err("2 (containerd 1.7) or 3 (containerd 2.x)".to_owned()),
    }
}
