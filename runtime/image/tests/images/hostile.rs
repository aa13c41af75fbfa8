//! Archives that try to write elsewhere, to confuse their reader or to fill the machine.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use carob_image::{Error, Limits};
use proptest::prelude::*;

use crate::archive::{Built, Header, Tar, gzip};
use crate::disk::Disk;

/// Every one is refused as hostile, and nothing of it stays.
#[tokio::test]
async fn hostile_entries_are_refused_and_leave_nothing() {
    let long = |name: &[u8]| Tar::new().extension(b'L', name).extension(b'L', name).file("x", "").end();
    let mut control = Header::new("x", b'0', 4);
    control.octal(108, 8, 0).text(108, 8, &[0x80, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]);
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("dotdot", Tar::new().file("../x", "").end()),
        ("dotdot inside", Tar::new().file("a/../../x", "").end()),
        ("dotdot in a directory", Tar::new().dir("a/..", 0o755).end()),
        ("no name", Tar::new().file("", "").end()),
        ("root is a file", Tar::new().file("./", "").raw(&Header::new(".", b'0', 0), b"").end()),
        ("file as a folder", Tar::new().file("a", "").file("a/b", "").end()),
        ("link loop as a folder", Tar::new().symlink("a", "a").file("a/b", "").end()),
        ("hard link out", Tar::new().hard_link("a", "../../etc/passwd").end()),
        ("hard link to nothing", Tar::new().hard_link("a", "/etc/passwd").end()),
        ("hard link through a link", Tar::new().symlink("e", "/etc").hard_link("a", "e/passwd").end()),
        ("hard link to a folder", Tar::new().dir("d", 0o755).hard_link("a", "d").end()),
        ("hard link to the root", Tar::new().hard_link("a", "/").end()),
        ("empty symlink", Tar::new().symlink("a", "").end()),
        ("whiteout of nothing", Tar::new().file("d/.wh.", "").end()),
        ("whiteout of itself", Tar::new().file("d/.wh..", "").end()),
        ("whiteout of the parent", Tar::new().file("d/.wh...", "").end()),
        ("inside of a whiteout", Tar::new().file(".wh.d/x", "").end()),
        ("content in a folder", Tar::new().raw(&Header::new("d/", b'5', 512), &[0; 512]).end()),
        ("content in a link", Tar::new().raw(Header::new("d", b'2', 512).link("x"), &[0; 512]).end()),
        ("unknown type", Tar::new().raw(&Header::new("d", b'M', 0), b"").end()),
        ("two long names", long(b"name\0")),
        ("NUL in a long name", Tar::new().extension(b'L', b"a\0b\0").file("x", "").end()),
        ("NUL in a pax path", Tar::new().pax(&[("path", b"a\0b")]).file("x", "").end()),
        ("pax path out", Tar::new().pax(&[("path", b"../../x")]).file("x", "").end()),
        ("pax link out", Tar::new().file("f", "").pax(&[("linkpath", b"../../etc/passwd")]).hard_link("x", "f").end()),
        ("pax path twice", Tar::new().pax(&[("path", b"a"), ("path", b"b")]).file("x", "").end()),
        ("pax and GNU name", Tar::new().pax(&[("path", b"a")]).extension(b'L', b"b\0").file("x", "").end()),
        ("two sizes", Tar::new().pax(&[("size", b"1024")]).raw(&Header::new("x", b'0', 0), b"").end()),
        ("two pax headers", Tar::new().pax(&[("path", b"a")]).pax(&[("path", b"b")]).file("x", "").end()),
        ("a global path", Tar::new().extension(b'g', b"10 path=a\n").file("x", "").end()),
        ("half an end", Tar(Tar::new().file("a", "").0.into_iter().chain([0; 512]).collect()).file("b", "").end()),
        ("owner that means nobody", Tar::new().raw(&control, b"x").end()),
        ("name over 255", Tar::new().pax(&[("path", &[b'a'; 256])]).file("x", "").end()),
        ("too deep", Tar::new().pax(&[("path", "a/".repeat(600).as_bytes())]).file("x", "").end()),
        ("sparse map that lies", {
            let records: [(&str, &[u8]); 3] =
                [("GNU.sparse.map", b"0,900"), ("GNU.sparse.size", b"10"), ("GNU.sparse.name", b"s")];
            Tar::new().pax(&records).file("x", "0123456789").end()
        }),
    ];
    let disk = Disk::new();
    for (label, tar) in cases {
        let error = disk.import(&[tar]).await.expect_err(label);
        assert!(matches!(error, Error::Hostile { .. }), "{label}: {}", error.describe());
        assert_eq!(error.reason(), "ErrImagePull");
        disk.assert_nothing_left();
    }
    assert!(!disk.temp.path().join("x").exists());
}

#[tokio::test]
async fn broken_archives_are_refused_and_leave_nothing() {
    let whole = Tar::new().file("a", &"x".repeat(2000)).end();
    let mut flipped = whole.clone();
    flipped[3] ^= 1;
    let mut bad_gzip = gzip(&whole);
    let middle = bad_gzip.len() / 2;
    bad_gzip[middle] ^= 0xff;
    let disk = Disk::new();
    for (label, layer) in [
        ("cut in the content", whole[..1000].to_vec()),
        ("cut in a header", whole[..300].to_vec()),
        ("wrong checksum", flipped),
        ("broken gzip", bad_gzip),
        ("cut gzip", gzip(&whole)[..20].to_vec()),
        ("not an archive", b"hello".repeat(300)),
        ("an extension and no entry", Tar::new().extension(b'L', b"name\0").end()),
        ("xz", [&b"\xfd7zXZ\0"[..], &[0; 600]].concat()),
    ] {
        let error = disk.import(&[layer]).await.expect_err(label);
        assert!(matches!(error, Error::Malformed { .. }), "{label}: {}", error.describe());
        disk.assert_nothing_left();
    }
}

#[tokio::test]
async fn too_much_of_anything_is_refused() {
    let limits = |change: fn(&mut Limits)| {
        let mut limits = Limits::default();
        change(&mut limits);
        limits
    };
    let many = (0..50).fold(Tar::new(), |tar, number| tar.file(&format!("f{number}"), "")).end();
    let big = Tar::new().file("big", &"x".repeat(100_000)).end();
    // A hole takes no room in the archive and none on disk, but readers would pay for it.
    let hole: [(&str, &[u8]); 3] =
        [("GNU.sparse.map", b""), ("GNU.sparse.size", b"99999999"), ("GNU.sparse.name", b"h")];
    let cases: Vec<(&str, Limits, Vec<u8>)> = vec![
        ("entries", limits(|limits| limits.entries = 10), many),
        ("unpacked bytes", limits(|limits| limits.unpacked_bytes = 50_000), gzip(&big)),
        ("layer bytes", limits(|limits| limits.layer_bytes = 1000), big),
        ("a hole", limits(|limits| limits.unpacked_bytes = 1 << 20), Tar::new().pax(&hole).file("x", "").end()),
        ("an extension", Limits::default(), Tar::new().extension(b'L', &vec![b'a'; 2 << 20]).file("x", "").end()),
        ("ratio", limits(|limits| limits.ratio = 2), {
            let zeros = vec![0; 300 << 20];
            gzip(&Tar::new().raw(&Header::new("z", b'0', zeros.len() as u64), &zeros).end())
        }),
    ];
    for (label, limits, layer) in cases {
        let disk = Disk::limited(limits);
        let error = disk.import(&[layer]).await.expect_err(label);
        assert!(matches!(error, Error::TooLarge { .. }), "{label}: {}", error.describe());
        disk.assert_nothing_left();
    }
}

/// Links that lead out of the layer lead nowhere: what is written through them stays inside.
#[tokio::test]
async fn links_out_of_the_layer_stay_inside() {
    let disk = Disk::new();
    let tar = Tar::new()
        .symlink("abs", "/outside")
        .symlink("up", "../../../../outside")
        .symlink("magic", "/proc/self/root")
        .file("abs/a", "1")
        .file("up/b", "2")
        .file("magic/c", "3")
        .end();
    let image = disk.import(&[tar]).await.unwrap();
    for (path, content) in [("outside/a", "1"), ("outside/b", "2"), ("proc/self/root/c", "3")] {
        assert_eq!(fs::read_to_string(image.layers[0].join(path)).unwrap(), content, "{path}");
    }
    assert!(!Path::new("/outside").exists());
}

#[derive(Clone, Debug)]
enum Op {
    File(String),
    Dir(String),
    Symlink(String, String),
    HardLink(String, String),
    Device(String),
}

fn path() -> impl Strategy<Value = String> {
    let part = prop_oneof![
        4 => "[abc]",
        1 => Just("..".to_owned()),
        1 => Just(".".to_owned()),
        1 => Just("victim".to_owned()),
        1 => "\\.wh\\.[abc]",
        1 => Just(".wh..wh..opq".to_owned()),
        1 => Just(String::new()),
    ];
    (any::<bool>(), prop::collection::vec(part, 1..5))
        .prop_map(|(absolute, parts)| format!("{}{}", if absolute { "/" } else { "" }, parts.join("/")))
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        path().prop_map(Op::File),
        path().prop_map(Op::Dir),
        (path(), path()).prop_map(|(name, target)| Op::Symlink(name, target)),
        (path(), Just(())).prop_map(|(name, ())| Op::Symlink(name, "../../../../../victim".to_owned())),
        (path(), path()).prop_map(|(name, target)| Op::HardLink(name, target)),
        path().prop_map(Op::Device),
    ]
}

/// Everything below a folder but the image directory, with content and owner: what no archive may change.
fn outside(root: &Path) -> BTreeMap<String, (u64, u32, i64, String)> {
    let mut found = BTreeMap::new();
    let mut pending = vec![root.to_owned()];
    while let Some(folder) = pending.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let meta = fs::symlink_metadata(&path).unwrap();
            if meta.is_dir() && path.file_name().is_some_and(|name| name != "images") {
                pending.push(path.clone());
            }
            if path.file_name().is_some_and(|name| name != "images") {
                let content = if meta.is_file() { fs::read_to_string(&path).unwrap() } else { String::new() };
                found.insert(path.display().to_string(), (meta.nlink(), meta.mode(), meta.mtime(), content));
            }
        }
    }
    found
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_archive_writes_outside_of_its_layer(ops in prop::collection::vec(op(), 1..20)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let disk = Disk::new();
        let victim = disk.temp.path().join("victim");
        fs::create_dir_all(victim.join("a")).unwrap();
        fs::write(victim.join("b"), "untouched").unwrap();
        let before = outside(disk.temp.path());
        let tar = ops.iter().fold(Tar::new(), |tar, op| match op {
            Op::File(name) => tar.file(name, "written"),
            Op::Dir(name) => tar.dir(name, 0o700),
            Op::Symlink(name, target) => tar.symlink(name, target),
            Op::HardLink(name, target) => tar.hard_link(name, target),
            Op::Device(name) => tar.raw(Header::new(name, b'3', 0).device(1, 3), b""),
        });
        let result = runtime.block_on(disk.import_built(&Built::plain(&[tar.end()]), "test"));
        prop_assert_eq!(outside(disk.temp.path()), before);
        prop_assert_eq!(disk.names("tmp"), Vec::<String>::new());
        if let Err(error) = result {
            prop_assert!(matches!(error, Error::Hostile { .. }), "{}", error.describe());
            disk.assert_nothing_left();
        }
    }
}
