//! Who an image's user is, by the image's own passwd and group files.

use crate::merged::Merged;
use crate::{Error, ImageUser};

/// More than any image's user database.
const MAX_FILE: u64 = 4 << 20;

struct Passwd {
    name: String,
    uid: u32,
    gid: u32,
    home: String,
}

struct Group {
    name: String,
    gid: u32,
    members: Vec<String>,
}

/// Resolves `user[:group]`, names or numbers, as containerd does: a number needs no entry, and takes its group, its home
/// and its supplementary groups from its entry if there is one. An explicit group replaces the primary one.
pub(crate) fn resolve(merged: &Merged, user: &str) -> Result<ImageUser, Error> {
    let (user, group) = match user.split_once(':') {
        Some((user, group)) => (user, Some(group).filter(|group| !group.is_empty())),
        None => (user, None),
    };
    let user = if user.is_empty() { "0" } else { user };
    let passwd = entries(merged, "/etc/passwd", passwd)?;
    let groups = entries(merged, "/etc/group", self::group)?;
    let entry = match id(user) {
        Some(uid) => passwd.into_iter().find(|entry| entry.uid == uid).unwrap_or(Passwd {
            name: String::new(),
            uid,
            gid: 0,
            home: "/".to_owned(),
        }),
        None => passwd.into_iter().find(|entry| entry.name == user).ok_or_else(|| Error::User {
            problem: format!("unable to find user {user}: no matching entries in passwd file"),
        })?,
    };
    let gid = match group {
        None => entry.gid,
        Some(group) => match id(group) {
            Some(gid) => gid,
            None => groups.iter().find(|entry| entry.name == group).map(|entry| entry.gid).ok_or_else(|| {
                Error::User { problem: format!("unable to find group {group}: no matching entries in group file") }
            })?,
        },
    };
    let mut supplementary = vec![gid];
    for group in groups {
        if group.members.contains(&entry.name) && !entry.name.is_empty() && !supplementary.contains(&group.gid) {
            supplementary.push(group.gid);
        }
    }
    let home = if entry.home.is_empty() { "/".to_owned() } else { entry.home };
    Ok(ImageUser { uid: entry.uid, gid, groups: supplementary, home })
}

/// A number as ids are: no sign, and not the one that means "leave it".
fn id(text: &str) -> Option<u32> {
    text.parse().ok().filter(|id| *id != u32::MAX && text.bytes().all(|byte| byte.is_ascii_digit()))
}

fn entries<T>(merged: &Merged, path: &str, parse: fn(&[&str]) -> Option<T>) -> Result<Vec<T>, Error> {
    let bytes = merged.read(path, MAX_FILE)?.unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    // Broken lines are skipped, as the C library does.
    Ok(text.lines().filter_map(|line| parse(&line.split(':').collect::<Vec<_>>())).collect())
}

fn passwd(fields: &[&str]) -> Option<Passwd> {
    let home = fields.get(5).copied().unwrap_or_default().to_owned();
    Some(Passwd { name: (*fields.first()?).to_owned(), uid: id(fields.get(2)?)?, gid: id(fields.get(3)?)?, home })
}

fn group(fields: &[&str]) -> Option<Group> {
    let members = fields.get(3).copied().unwrap_or_default();
    Some(Group {
        name: (*fields.first()?).to_owned(),
        gid: id(fields.get(2)?)?,
        members: members.split(',').map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned).collect(),
    })
}
