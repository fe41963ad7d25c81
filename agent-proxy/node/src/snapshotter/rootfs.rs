//! What containerd sees of a container's root filesystem: users and groups that mean "look it up in the image".
//!
//! containerd reads `/etc/passwd` and `/etc/group` of the image to make the process's user, and it has no layers to read them from. Names
//! and numbers that it may look for are therefore given the id [`FROM_IMAGE`], which the guest replaces by what the image says. Explicit
//! groups (`runAsGroup`) are not looked up and arrive as they are.

use std::fmt::Write as _;
use std::io;
use std::path::Path;

use peerpods_protos::user::FROM_IMAGE;

/// Numbers that images usually have names for: Debian's static and dynamic ranges with the first users, and those at the end of 16 bits.
const NUMBERS: [std::ops::RangeInclusive<u32>; 2] = [1..=1999, 65532..=65535];

/// Makes the folder; it may be there in part.
pub(super) fn make(root: &Path, image_user: &str) -> io::Result<()> {
    let etc = root.join("etc");
    std::fs::create_dir_all(&etc)?;
    let (passwd, group) = files(image_user);
    std::fs::write(etc.join("passwd"), passwd)?;
    std::fs::write(etc.join("group"), group)
}

/// `/etc/passwd` and `/etc/group` for an image whose configuration says `User: image_user`.
fn files(image_user: &str) -> (String, String) {
    let (user, group) = image_user.split_once(':').unwrap_or((image_user, ""));
    let named = |name: &str| !name.is_empty() && name != "root" && !name.bytes().all(|b| b.is_ascii_digit()) && is_plain(name);
    let mut passwd = "root:x:0:0:root:/root:/bin/sh\n".to_owned();
    let mut members = vec!["root".to_owned()];
    let mut add = |name: String, uid: u32| {
        // Writing to a String does not fail.
        let _ = writeln!(passwd, "{name}:x:{uid}:{FROM_IMAGE}::/:/bin/sh");
        members.push(name);
    };
    if named(user) {
        add(user.to_owned(), FROM_IMAGE);
    }
    for uid in NUMBERS.into_iter().flatten() {
        add(format!("u{uid}"), uid);
    }
    let mut groups = format!("root:x:0:\nimage:x:{FROM_IMAGE}:{}\n", members.join(","));
    if named(group) && group != "image" {
        let _ = writeln!(groups, "{group}:x:{FROM_IMAGE}:");
    }
    (passwd, groups)
}

/// A name that can stand in the files; containerd refuses others itself.
fn is_plain(name: &str) -> bool {
    name.len() <= 256 && name.bytes().all(|b| b.is_ascii_graphic() && b != b':' && b != b',')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_named_user_and_group_are_looked_up_in_the_image() {
        let (passwd, group) = files("app:staff");
        assert!(passwd.contains(&format!("\napp:x:{FROM_IMAGE}:{FROM_IMAGE}::/:/bin/sh\n")));
        assert!(passwd.contains(&format!("\nu1000:x:1000:{FROM_IMAGE}:")));
        assert!(passwd.starts_with("root:x:0:0:"));
        assert!(group.contains(&format!("\nstaff:x:{FROM_IMAGE}:\n")));
        assert!(group.contains(&format!("image:x:{FROM_IMAGE}:root,app,u1,")));
    }

    #[test]
    fn numbers_root_and_hostile_names_add_nothing() {
        for user in ["", "root", "1000", "1000:1000", "a,b", "x\ny:0"] {
            let (passwd, group) = files(user);
            assert_eq!(passwd.lines().count(), 1 + 1999 + 4, "{user:?}");
            assert_eq!(group.lines().count(), 2, "{user:?}");
        }
    }
}
