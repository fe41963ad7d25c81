//! Environment and working directory of a process, as runc makes them.

use std::ffi::CString;
use std::fs;
use std::io::{self, Read as _};
use std::path::Path;

use nix::sys::stat::Mode;
use nix::unistd::{Gid, Uid, chown, mkdir};

use crate::failure::text;
use crate::users;

/// More is not a list of users.
const MAX_PASSWD_BYTES: u64 = 4 << 20;

/// The variables in their order; of one that is set twice the last value counts, in the first one's place. HOME is added where it
/// is missing or empty.
pub(super) fn variables(given: &[String], uid: u32) -> Result<Vec<CString>, String> {
    let mut all: Vec<(&str, &str)> = Vec::new();
    for pair in given {
        let (name, value) = pair.split_once('=').ok_or_else(|| format!("invalid environment variable: {pair:?}"))?;
        if name.is_empty() {
            return Err(format!("environment variable name can't be empty: {pair:?}"));
        }
        match all.iter_mut().find(|(earlier, _)| *earlier == name) {
            Some((_, earlier)) => *earlier = value,
            None => all.push((name, value)),
        }
    }
    let home = all.iter().position(|(name, value)| *name == "HOME" && !value.is_empty());
    let found = if home.is_none() { home_of(uid) } else { String::new() };
    if home.is_none() {
        match all.iter_mut().find(|(name, _)| *name == "HOME") {
            Some((_, value)) => *value = &found,
            None => all.push(("HOME", &found)),
        }
    }
    let string = |(name, value): &(&str, &str)| {
        CString::new(format!("{name}={value}")).map_err(|_| format!("environment variable {name:?} contains a zero byte"))
    };
    all.iter().map(string).collect()
}

/// From the file that the container itself sees.
fn home_of(uid: u32) -> String {
    let read = || -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let is_file = fs::metadata("/etc/passwd")?.is_file();
        if is_file {
            fs::File::open("/etc/passwd")?.take(MAX_PASSWD_BYTES).read_to_end(&mut bytes)?;
        }
        Ok(bytes)
    };
    let passwd = read().unwrap_or_default();
    users::home(&String::from_utf8_lossy(&passwd), uid)
}

/// Makes the folder with those above it, as root's.
pub(super) fn make_folder(folder: &Path) -> Result<(), String> {
    let failed = |path: &Path, error: nix::Error| format!("mkdir {}: {}", path.display(), text(error));
    let mut path = std::path::PathBuf::from("/");
    for part in folder.components() {
        path.push(part);
        match mkdir(&path, Mode::from_bits_truncate(0o755)) {
            Ok(()) => chown(&path, Some(Uid::from_raw(0)), Some(Gid::from_raw(0))).map_err(|error| failed(&path, error))?,
            Err(_) if path.is_dir() => {}
            Err(nix::Error::EEXIST) => return Err(failed(&path, nix::Error::ENOTDIR)),
            Err(error) => return Err(failed(&path, error)),
        }
    }
    Ok(())
}

/// Goes there; nowhere outside of the container's root.
pub(super) fn enter(folder: &Path) -> Result<(), String> {
    let named = folder.display();
    nix::unistd::chdir(folder).map_err(|error| format!("chdir to cwd (\"{named}\") set in config.json failed: {}", text(error)))?;
    match nix::unistd::getcwd() {
        Ok(now) if now.is_absolute() => Ok(()),
        // A name such as /proc/self/fd/7 could lead out of it.
        _ => Err(format!("the working directory {named} is outside of the container's root")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(pairs: &[&str]) -> Result<Vec<String>, String> {
        let pairs: Vec<String> = pairs.iter().map(|pair| (*pair).to_owned()).collect();
        variables(&pairs, 0).map(|all| all.into_iter().map(|pair| pair.into_string().unwrap()).collect())
    }

    #[test]
    fn variables_keep_their_order_and_their_last_value() {
        assert_eq!(given(&["B=1", "A=2", "B=3=4", "HOME=/h", "C="]).unwrap(), ["B=3=4", "A=2", "HOME=/h", "C="]);
        let with_home = given(&["HOME=", "A=1"]).unwrap();
        assert!(with_home[0].starts_with("HOME=/") && with_home[1] == "A=1", "{with_home:?}");
        assert!(given(&[]).unwrap()[0].starts_with("HOME=/"));
        assert_eq!(given(&["NOEQ"]).unwrap_err(), "invalid environment variable: \"NOEQ\"");
        assert_eq!(given(&["=x"]).unwrap_err(), "environment variable name can't be empty: \"=x\"");
    }
}
