//! The user an app runs as: OCI `User` resolved by the image's own `/etc/passwd` and `/etc/group` (image-spec, `config.User`).

/// Ids and home folder of the app.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// User id.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// Further groups: those that list the user, when `User` names no group.
    pub groups: Vec<u32>,
    /// Home folder; `/` when the user has no entry.
    pub home: String,
}

/// `User` cannot be resolved.
#[derive(Debug, thiserror::Error)]
#[error("app document: user is {user:?}, but {kind} {name:?} is not in the image's {file}")]
pub struct Unknown {
    /// `User` as given.
    pub user: String,
    /// `user` or `group`.
    pub kind: &'static str,
    /// The name that was looked up.
    pub name: String,
    /// The file searched.
    pub file: &'static str,
}

/// Most supplementary groups taken (Linux allows 65536; no image means that many).
const LIMIT_GROUPS: usize = 1024;

/// Resolves `user`: empty (root), `name`, `uid`, `name-or-uid:group-or-gid`. `passwd` and `group` are the contents of the image's files.
///
/// # Errors
/// A name that the files do not have. A number needs no entry.
pub fn resolve(user: &str, passwd: &str, group: &str) -> Result<Account, Unknown> {
    let (user_part, group_part) = user.split_once(':').map_or((user, ""), |(u, g)| (u, g));
    let user_part = if user_part.is_empty() { "0" } else { user_part };
    let unknown = |kind, name: &str, file| Unknown { user: user.into(), kind, name: name.into(), file };

    let number = user_part.parse::<u32>().ok();
    let entry = passwd.lines().filter_map(entry).find(|e| e.name == user_part || number == Some(e.uid));
    let (uid, home, primary, name) = match (&entry, number) {
        (Some(e), _) => (e.uid, e.home, e.gid, Some(e.name)),
        (None, Some(uid)) => (uid, "/", 0, None),
        (None, None) => return Err(unknown("user", user_part, "/etc/passwd")),
    };
    let (gid, groups) = if group_part.is_empty() {
        (primary, name.map(|n| groups_of(n, group)).unwrap_or_default())
    } else {
        let found = group.lines().filter_map(group_entry).find(|(n, _, _)| *n == group_part).map(|(_, gid, _)| gid);
        let gid =
            found.or_else(|| group_part.parse().ok()).ok_or_else(|| unknown("group", group_part, "/etc/group"))?;
        (gid, Vec::new())
    };
    let home = if home.is_empty() { "/" } else { home };
    Ok(Account { uid, gid, groups, home: home.into() })
}

struct Entry<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

/// `name:password:uid:gid:gecos:home:shell` (passwd(5)); other lines are passed over, as libc does.
fn entry(line: &str) -> Option<Entry<'_>> {
    let mut fields = line.split(':');
    let name = fields.next().filter(|n| !n.is_empty())?;
    let uid = fields.nth(1)?.parse().ok()?;
    let gid = fields.next()?.parse().ok()?;
    let home = fields.nth(1).unwrap_or_default();
    Some(Entry { name, uid, gid, home })
}

/// `name:password:gid:member,member` (group(5)).
fn group_entry(line: &str) -> Option<(&str, u32, &str)> {
    let mut fields = line.split(':');
    let name = fields.next().filter(|n| !n.is_empty())?;
    let gid = fields.nth(1)?.parse().ok()?;
    Some((name, gid, fields.next().unwrap_or_default()))
}

fn groups_of(user: &str, group: &str) -> Vec<u32> {
    let mut groups: Vec<u32> = group
        .lines()
        .filter_map(group_entry)
        .filter(|(_, _, members)| members.split(',').any(|m| m.trim() == user))
        .map(|(_, gid, _)| gid)
        .take(LIMIT_GROUPS)
        .collect();
    groups.sort_unstable();
    groups.dedup();
    groups
}

/// Fuzzing entry: passwd and group files of a stranger's image.
#[doc(hidden)]
pub fn fuzz_account(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let (user, files) = text.split_once('\n').unwrap_or((&text, ""));
    let _ = resolve(user, files, files);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n# comment\nbroken line\nweb:x:101:102:web:/var/www:/bin/false\nnohome:x:7:7::\n";
    const GROUP: &str = "root:x:0:\nweb:x:102:\nvideo:x:44:other, web\naudio:x:29:web,web\nbroken\n";

    #[test]
    fn users_resolve_as_the_image_spec_says() {
        let account =
            |uid, gid, groups: &[u32], home: &str| Account { uid, gid, groups: groups.into(), home: home.into() };
        let cases = [
            ("", account(0, 0, &[], "/root")),
            ("root", account(0, 0, &[], "/root")),
            ("web", account(101, 102, &[29, 44], "/var/www")),
            ("101", account(101, 102, &[29, 44], "/var/www")),
            ("web:video", account(101, 44, &[], "/var/www")),
            ("web:9", account(101, 9, &[], "/var/www")),
            ("5000", account(5000, 0, &[], "/")),
            ("5000:6000", account(5000, 6000, &[], "/")),
            ("nohome", account(7, 7, &[], "/")),
        ];
        for (user, expected) in cases {
            assert_eq!(resolve(user, PASSWD, GROUP).unwrap(), expected, "{user:?}");
        }
    }

    #[test]
    fn unknown_names_are_refused_by_name() {
        for (user, expected) in [
            ("nobody", "user \"nobody\""),
            ("web:staff", "group \"staff\""),
            ("-1", "user \"-1\""),
            ("99999999999", "user"),
        ] {
            let text = resolve(user, PASSWD, GROUP).unwrap_err().to_string();
            assert!(text.contains(expected), "{user}: {text}");
        }
    }

    #[test]
    fn numbers_need_no_files() {
        assert_eq!(resolve("", "", "").unwrap().uid, 0);
        assert_eq!(resolve("12:34", "", "").unwrap().gid, 34);
    }

    proptest! {
        #[test]
        fn no_image_panics(data in proptest::collection::vec(any::<u8>(), 0..200)) {
            fuzz_account(&data);
        }
    }
}
