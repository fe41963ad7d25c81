//! Users and groups that only the image knows.
//!
//! The node has no layers, so its containerd gives [`FROM_IMAGE`] where it would have looked into the image's `/etc/passwd` and
//! `/etc/group`; here it is replaced by what they say, as runc's and containerd's own look-ups would have it (moby/sys `user`). Kata's shims
//! send plain numbers, which are left alone.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use oci_spec::runtime::Process;
use peerpods_protos::user::FROM_IMAGE;
use rustix::fs::{Mode, OFlags, ResolveFlags};

use crate::failure::Failure;

/// More is not a list of users.
const MAX_BYTES: u64 = 4 << 20;

struct Entry {
    name: String,
    uid: u32,
    gid: u32,
    home: String,
}

/// Replaces the marks in a process's user.
pub(crate) fn resolve(root: &Path, image_user: &str, process: &mut Process) -> Result<(), Failure> {
    let passwd = passwd(&read(root, "etc/passwd"));
    let mut user = process.user().clone();
    let (named_user, named_group) = image_user.split_once(':').unwrap_or((image_user, ""));
    if user.uid() == FROM_IMAGE {
        let wanted = named_user.parse::<u32>().ok();
        let known = passwd.iter().find(|entry| entry.name == named_user);
        let uid = known.map(|entry| entry.uid).or(wanted);
        user.set_uid(uid.ok_or_else(|| Failure::invalid(format!("unable to find user {named_user}: no matching entries in passwd file")))?);
    }
    let own = passwd.iter().find(|entry| entry.uid == user.uid());
    let groups = groups(&read(root, "etc/group"));
    if user.gid() == FROM_IMAGE {
        let gid = match named_group {
            "" => own.map_or(0, |entry| entry.gid),
            name => groups
                .iter()
                .find(|(group, _, _)| group == name)
                .map(|(_, gid, _)| *gid)
                .or_else(|| name.parse().ok())
                .ok_or_else(|| Failure::invalid(format!("unable to find group {name}: no matching entries in group file")))?,
        };
        user.set_gid(gid);
    }
    if let Some(given) = user.additional_gids().clone().filter(|gids| gids.contains(&FROM_IMAGE)) {
        let is_member = |members: &[String]| own.is_some_and(|entry| members.contains(&entry.name));
        let memberships = groups.iter().filter(|(_, _, members)| is_member(members)).map(|(_, gid, _)| *gid);
        let mut gids: Vec<u32> = Vec::new();
        // containerd puts the primary group first where it adds any.
        for gid in given.into_iter().filter(|gid| *gid != FROM_IMAGE).chain([user.gid()]).chain(memberships) {
            if !gids.contains(&gid) {
                gids.push(gid);
            }
        }
        user.set_additional_gids(Some(gids));
    }
    process.set_user(user);
    Ok(())
}

/// The home of a user by the text of a passwd file; `/` for one who is not in it.
pub(crate) fn home(text: &str, uid: u32) -> String {
    passwd(text).into_iter().find(|entry| entry.uid == uid).map_or_else(|| "/".to_owned(), |entry| entry.home)
}

/// A file of the image, found as the container would find it; one that is not there is empty, and so is one that is no text.
fn read(root: &Path, path: &str) -> String {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let open = || -> std::io::Result<String> {
        let root = rustix::fs::open(root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let file = rustix::fs::openat2(&root, path, flags, Mode::empty(), ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS)?;
        let mut bytes = Vec::new();
        File::from(file).take(MAX_BYTES).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    open().unwrap_or_default()
}

/// `name:password:uid:gid:gecos:home:shell`, of which the last three may be missing; other lines are passed over. moby takes numbers
/// that are none for 0, which would make a root of a user by a slip.
fn passwd(text: &str) -> Vec<Entry> {
    let entry = |line: &str| {
        let fields: Vec<&str> = line.trim().split(':').collect();
        let [name, _, uid, gid, ref rest @ ..] = fields[..] else { return None };
        let home = rest.get(1).copied().unwrap_or_default();
        let is_comment = name.starts_with('#');
        let entry = Entry { name: name.to_owned(), uid: uid.parse().ok()?, gid: gid.parse().ok()?, home: home.to_owned() };
        (!is_comment).then_some(entry)
    };
    text.lines().filter_map(entry).collect()
}

/// `name:password:gid:members`.
fn groups(text: &str) -> Vec<(String, u32, Vec<String>)> {
    let group = |line: &str| {
        let fields: Vec<&str> = line.trim().split(':').collect();
        let [name, _, gid, ref rest @ ..] = fields[..] else { return None };
        let members = rest.first().copied().unwrap_or_default().split(',').filter(|member| !member.is_empty()).map(str::to_owned).collect();
        Some((name.to_owned(), gid.parse().ok()?, members))
    };
    text.lines().filter_map(group).collect()
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::{ProcessBuilder, UserBuilder};

    use super::*;

    fn image() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("etc")).unwrap();
        std::fs::write(root.path().join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\nbroken\napp:x:1234:1235::/home/app:/bin/sh\n")
            .unwrap();
        std::fs::write(root.path().join("etc/group"), "root:x:0:\naudio:x:29:app\nvideo:x:44:other,app\nstaff:x:50:\n").unwrap();
        root
    }

    fn resolved(image_user: &str, uid: u32, gid: u32, gids: &[u32]) -> Result<(u32, u32, Vec<u32>), Failure> {
        let root = image();
        let user = UserBuilder::default().uid(uid).gid(gid).additional_gids(gids.to_vec()).build().unwrap();
        let mut process = ProcessBuilder::default().user(user).build().unwrap();
        resolve(root.path(), image_user, &mut process)?;
        let user = process.user();
        Ok((user.uid(), user.gid(), user.additional_gids().clone().unwrap_or_default()))
    }

    #[test]
    fn the_images_user_has_the_images_groups() {
        assert_eq!(resolved("app", FROM_IMAGE, FROM_IMAGE, &[FROM_IMAGE]).unwrap(), (1234, 1235, vec![1235, 29, 44]));
        assert_eq!(resolved("app:staff", FROM_IMAGE, FROM_IMAGE, &[]).unwrap().1, 50);
    }

    #[test]
    fn homes_are_found_by_number() {
        let text = "# comment:x:7:7::/c\nroot:x:0:0:root:/root:/bin/sh\nshort:x:5:5\nbad:x:zero:0::/bad\n";
        assert_eq!([0, 5, 7, 9].map(|uid| home(text, uid)), ["/root", "", "/", "/"]);
    }

    #[test]
    fn plain_numbers_are_left_alone_and_unknown_names_are_named() {
        assert_eq!(resolved("app", 1, 2, &[3]).unwrap(), (1, 2, vec![3]));
        assert_eq!(resolved("app", 77, FROM_IMAGE, &[]).unwrap().1, 0);
        assert!(resolved("nobody", FROM_IMAGE, 0, &[]).unwrap_err().message().contains("nobody"));
        assert!(resolved("app:none", FROM_IMAGE, FROM_IMAGE, &[]).unwrap_err().message().contains("none"));
    }
}
