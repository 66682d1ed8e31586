use super::*;
use std::collections::BTreeMap;

fn meta(mode: u16) -> Meta {
    Meta { mode, uid: 70_000, gid: 3, mtime: 1_600_000_000, mtime_nsec: 7, xattrs: BTreeMap::new() }
}

fn file(text: &str) -> Kind {
    Kind::File(Data::Bytes(text.as_bytes().into()))
}

fn tree() -> Tree {
    let mut t = Tree::new(1000);
    t.insert(b"usr/bin/app", meta(0o755), file("app")).unwrap();
    t.insert(b"bin", meta(0o777), Kind::Symlink(b"usr/bin".to_vec())).unwrap();
    t
}

fn names(t: &Tree, path: &[u8]) -> Vec<String> {
    let c = t.children(t.lookup(path).unwrap()).unwrap();
    c.keys().map(|n| String::from_utf8_lossy(n).into_owned()).collect()
}

#[test]
fn parents_are_made_and_links_among_them_followed_within_the_tree() {
    let mut t = tree();
    t.insert(b"./bin/other", meta(0o755), file("x")).unwrap();
    assert_eq!(names(&t, b"usr/bin"), ["app", "other"]);
    t.insert(b"up", meta(0o777), Kind::Symlink(b"../../../usr".to_vec())).unwrap();
    assert!(t.lookup(b"/up/bin/app").is_some());
    assert!(matches!(t.node(t.lookup(b"up").unwrap()).kind, Kind::Symlink(_)));
    assert_eq!(t.lookup_follow(b"up/bin"), t.lookup(b"usr/bin"));
}

#[test]
fn hostile_paths_are_refused() {
    let mut t = tree();
    t.insert(b"loop", meta(0o777), Kind::Symlink(b"loop".to_vec())).unwrap();
    let long = vec![b'a'; 256];
    for bad in [b"../x".as_slice(), b"usr/../../x", b"loop/x", b"usr/bin/app/x", &long] {
        assert!(t.insert(bad, meta(0o644), file("x")).is_err(), "{bad:?}");
    }
    assert!(t.insert(b"", meta(0o644), file("x")).is_err());
    assert!(t.insert(b"s", meta(0o777), Kind::Symlink(vec![])).is_err());
    assert!(t.hardlink(b"d", b"usr").is_err());
}

#[test]
fn a_directory_over_a_directory_keeps_its_children_and_a_file_over_one_does_not() {
    let mut t = tree();
    t.insert(b"usr", meta(0o700), Kind::dir()).unwrap();
    assert_eq!(t.node(t.lookup(b"usr").unwrap()).meta.mode, 0o700);
    assert!(t.lookup(b"usr/bin/app").is_some());
    t.insert(b"usr/bin", meta(0o644), file("now a file")).unwrap();
    assert!(t.lookup(b"usr/bin/app").is_none());
    t.insert(b"usr/bin", meta(0o755), Kind::dir()).unwrap();
    assert!(names(&t, b"usr/bin").is_empty());
}

#[test]
fn whiteouts_remove_and_opaque_ones_empty() {
    let mut t = tree();
    assert!(t.remove(b"usr/bin/app") && !t.remove(b"usr/bin/app"));
    t.insert(b"usr/lib/x", meta(0o644), file("x")).unwrap();
    assert!(t.clear_dir(b"usr/lib") && !t.clear_dir(b"nothing"));
    assert!(names(&t, b"usr/lib").is_empty());
}

#[test]
fn the_number_of_nodes_is_bounded() {
    let mut t = Tree::new(3);
    t.insert(b"a", meta(0o644), file("")).unwrap();
    t.insert(b"b", meta(0o644), file("")).unwrap();
    assert!(t.insert(b"c", meta(0o644), file("")).unwrap_err().to_string().contains("more files"));
}

#[test]
fn the_image_does_not_depend_on_the_order_of_insertion() {
    let image = |order: &[&str]| {
        let mut t = Tree::new(100);
        for n in order {
            t.insert(n.as_bytes(), meta(0o644), file(n)).unwrap();
        }
        let mut out = Vec::new();
        let n = write(&mut out, &t, &Vec::new(), Options::default()).unwrap();
        assert_eq!(n, out.len() as u64);
        out
    };
    let a = image(&["z/1", "a", "m/x/y"]);
    // Parents made on the way have no owner or time of their own, so both orders make the same tree.
    assert_eq!(a, image(&["m/x/y", "a", "z/1"]));
    assert_eq!(a.len() % 4096, 0);
}

#[test]
fn attributes_that_erofs_cannot_hold_are_named() {
    for name in [b"system.other".as_slice(), b"user.", b"nonsense"] {
        let mut t = Tree::new(10);
        let mut m = meta(0o644);
        m.xattrs.insert(name.to_vec(), b"v".to_vec());
        t.insert(b"f", m, file("")).unwrap();
        let e = write(&mut Vec::new(), &t, &Vec::new(), Options::default()).unwrap_err();
        assert!(e.to_string().contains(std::str::from_utf8(name).unwrap()), "{e}");
    }
}

#[test]
fn inode_and_xattrs_have_the_documented_bytes() {
    let mut t = Tree::new(10);
    let mut m = meta(0o4755);
    m.xattrs.insert(b"security.capability".to_vec(), b"CAPS!".to_vec());
    t.insert(b"f", m, file("hello")).unwrap();
    let mut img = Vec::new();
    write(&mut img, &t, &Vec::new(), Options { build_time: 9, ..Options::default() }).unwrap();
    assert_eq!(hex::encode(&img[1024..1028]), "e2e1f5e0");
    assert_eq!(img[1024 + 14..1024 + 16], [128, 0]);
    // The root takes 64 bytes and a tail of 3 names (".", "..", "f": 36 + 4 bytes), then the file at the next 64.
    let at = 4096 + 128;
    let want = [
        "0500", // extended, flat inline
        "0600", // xattr words: 20 / 4 + 1
        "ed89",
        "0000",
        "0500000000000000",
        "ffffffff",
        "02000000", // mode, size, no block, number
        "70110100",
        "03000000",
        "00105e5f00000000",
        "07000000",
        "01000000", // uid, gid, mtime, links
        "00000000000000000000000000000000",
        "000000000000000000000000", // xattr header
        "0a060500",
        "6361706162696c697479",
        "4341505321",
        "00", // capability
    ]
    .concat();
    let bytes = &img[at..at + want.len() / 2];
    assert_eq!(hex::encode(bytes), want);
    assert_eq!(&img[at + 64 + 12 + 20..at + 64 + 12 + 25], b"hello");
}
