use std::fs;
use std::io::Write;

use super::*;
use crate::Change;

const SETTLE: Duration = Duration::from_millis(300);
const MOMENT: Duration = Duration::from_millis(20);

/// A directory under watch, with a clock that the test moves.
struct World {
    folder: tempfile::TempDir,
    watcher: Watcher,
    now: Instant,
}

impl World {
    fn new(files: &[(&str, &str)]) -> (Self, Vec<String>) {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            put(folder.path(), name, text);
        }
        let now = Instant::now();
        let (watcher, turn) = Watcher::open(folder.path(), Options::default(), now).unwrap();
        let told = told(turn, folder.path());
        (Self { folder, watcher, now }, told)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn put(&self, name: &str, text: &str) {
        put(self.folder.path(), name, text);
    }

    /// Lets time pass, with a turn before and after.
    fn after(&mut self, time: Duration) -> Vec<String> {
        let mut all = told(self.watcher.turn(self.now), self.folder.path());
        self.now += time;
        all.extend(told(self.watcher.turn(self.now), self.folder.path()));
        all
    }
}

fn put(folder: &Path, name: &str, text: &str) {
    let path = folder.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

fn told(turn: Turn, root: &Path) -> Vec<String> {
    let root = format!("{}/", root.display());
    let changes = turn.difference.changes.values().map(|change| match change {
        Change::Set(placed) => format!("set {} {}", placed.object.key(), placed.at),
        Change::Removed(key) => format!("removed {key}"),
    });
    let moved = turn.difference.moved.iter().map(|(key, at)| format!("moved {key} {at}"));
    let findings = turn.findings.iter().map(|all| {
        let codes: Vec<String> = all.iter().map(|one| format!("{} {}", one.code, one.at)).collect();
        format!("findings [{}]", codes.join(", "))
    });
    changes.chain(moved).chain(findings).map(|line| line.replace(&root, "")).collect()
}

fn map(name: &str, value: &str) -> String {
    format!("apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: {name}\ndata:\n  key: v{value}\n")
}

fn both(a: &str, b: &str) -> String {
    format!("{}---\n{}", map("a", a), map("b", b))
}

#[test]
fn nested_folders_are_read_at_once_and_followed() {
    let (mut world, first) =
        World::new(&[("a.yaml", &map("a", "1")), ("x/y/b.yml", &map("b", "1")), ("x/.c.yaml", "[")]);
    assert_eq!(first, ["set ConfigMap default/a a.yaml:1:1", "set ConfigMap default/b x/y/b.yml:1:1"]);
    world.put("x/y/z/c.json", r#"{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"c"}}"#);
    assert_eq!(world.after(MOMENT), ["set Namespace c x/y/z/c.json:1:1"]);
    world.put("x/y/z/c.json", r#"{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"c","labels":{"a":"b"}}}"#);
    assert_eq!(world.after(MOMENT), ["set Namespace c x/y/z/c.json:1:1"]);
}

#[test]
fn one_edited_object_is_one_change() {
    let (mut world, _) = World::new(&[("a.yaml", &both("1", "1"))]);
    world.put("a.yaml", &both("1", "2"));
    assert_eq!(world.after(MOMENT), ["set ConfigMap default/b a.yaml:8:1"]);
    world.put("a.yaml", &both("1", "2"));
    assert_eq!(world.after(MOMENT), [""; 0], "the same text again is no change");
    world.put("a.yaml", &format!("# more\n{}", both("1", "2")));
    let told = world.after(MOMENT);
    assert_eq!(told, ["moved ConfigMap default/a a.yaml:2:1", "moved ConfigMap default/b a.yaml:9:1"]);
}

#[test]
fn a_file_put_in_place_by_rename_counts_at_once() {
    let (mut world, _) = World::new(&[("a.yaml", &map("a", "1"))]);
    fs::write(world.path(".a.yaml.tmp"), map("a", "2")).unwrap();
    fs::rename(world.path(".a.yaml.tmp"), world.path("a.yaml")).unwrap();
    assert_eq!(world.after(MOMENT), ["set ConfigMap default/a a.yaml:1:1"]);
}

#[test]
fn a_half_written_file_changes_nothing_until_it_is_whole() {
    let (mut world, _) = World::new(&[("a.yaml", &both("1", "1"))]);
    let text = both("2", "2");
    let mut file = fs::File::create(world.path("a.yaml")).unwrap();
    assert_eq!(world.after(MOMENT), [""; 0], "empty");
    file.write_all(&text.as_bytes()[..70]).unwrap();
    assert_eq!(world.after(MOMENT), [""; 0], "half");
    file.write_all(&text.as_bytes()[70..]).unwrap();
    drop(file);
    assert_eq!(world.after(MOMENT), ["set ConfigMap default/a a.yaml:1:1", "set ConfigMap default/b a.yaml:8:1"]);
    assert_eq!(world.after(SETTLE), [""; 0]);
}

#[test]
fn errors_are_told_after_a_while_and_what_was_good_stays() {
    let (mut world, _) = World::new(&[("a.yaml", &both("1", "1"))]);
    world.put("a.yaml", &both("2", "[").replace("name: b", "name: ["));
    assert_eq!(world.after(MOMENT), [""; 0]);
    assert_eq!(world.after(SETTLE), ["set ConfigMap default/a a.yaml:1:1", "findings [MAN001 a.yaml:13:6]"]);
    world.put("a.yaml", &both("2", "3"));
    assert_eq!(world.after(MOMENT), ["set ConfigMap default/b a.yaml:8:1", "findings []"]);
}

#[test]
fn errors_at_the_start_do_not_hold_up_the_rest() {
    let (mut world, first) =
        World::new(&[("a.yaml", &format!("{}---\nkind: Nope\n", map("a", "1"))), ("b.yaml", &map("b", "1"))]);
    assert_eq!(first, ["set ConfigMap default/a a.yaml:1:1", "set ConfigMap default/b b.yaml:1:1"]);
    assert_eq!(world.after(SETTLE), ["findings [MAN002 a.yaml:8:1]"]);
}

#[test]
fn objects_of_a_deleted_file_or_document_go_after_a_while() {
    let (mut world, _) = World::new(&[("a.yaml", &both("1", "1")), ("c.yaml", &map("c", "1"))]);
    world.put("a.yaml", &map("a", "1"));
    fs::remove_file(world.path("c.yaml")).unwrap();
    assert_eq!(world.after(MOMENT), [""; 0]);
    assert_eq!(world.after(SETTLE), ["removed ConfigMap default/b", "removed ConfigMap default/c"]);
}

#[test]
fn an_editor_that_moves_the_file_away_and_writes_a_new_one_changes_one_object() {
    let (mut world, _) = World::new(&[("a.yaml", &both("1", "1"))]);
    fs::rename(world.path("a.yaml"), world.path("a.yaml~")).unwrap();
    assert_eq!(world.after(MOMENT), [""; 0]);
    world.put("a.yaml", &both("1", "2"));
    assert_eq!(world.after(MOMENT), ["set ConfigMap default/b a.yaml:8:1"]);
    assert_eq!(world.after(SETTLE), [""; 0]);
}

#[test]
fn a_renamed_file_or_folder_changes_no_object() {
    let (mut world, _) = World::new(&[("a.yaml", &map("a", "1")), ("x/b.yaml", &map("b", "1"))]);
    fs::rename(world.path("a.yaml"), world.path("z.yaml")).unwrap();
    assert_eq!(world.after(MOMENT), ["moved ConfigMap default/a z.yaml:1:1"]);
    fs::rename(world.path("x"), world.path("y")).unwrap();
    assert_eq!(world.after(MOMENT), ["moved ConfigMap default/b y/b.yaml:1:1"]);
    assert_eq!(world.after(SETTLE), [""; 0]);
    world.put("y/b.yaml", &map("b", "2"));
    assert_eq!(world.after(MOMENT), ["set ConfigMap default/b y/b.yaml:1:1"]);
}

#[test]
fn the_second_of_two_objects_with_one_name_waits_for_the_first_to_go() {
    let (mut world, first) = World::new(&[("a.yaml", &map("x", "1")), ("b.yaml", &map("x", "2"))]);
    assert_eq!(first, ["set ConfigMap default/x a.yaml:1:1", "findings [MAN010 b.yaml:1:1]"]);
    fs::remove_file(world.path("a.yaml")).unwrap();
    world.after(MOMENT);
    assert_eq!(world.after(SETTLE), ["set ConfigMap default/x b.yaml:1:1", "findings []"]);
}

#[test]
fn links_are_followed_as_kubernetes_volumes_use_them() {
    let (mut world, _) = World::new(&[]);
    world.put("..1/a.yaml", &map("a", "1"));
    world.put("..2/a.yaml", &map("a", "2"));
    std::os::unix::fs::symlink("..1", world.path("..data")).unwrap();
    std::os::unix::fs::symlink("..data/a.yaml", world.path("a.yaml")).unwrap();
    assert_eq!(world.after(SETTLE), ["set ConfigMap default/a a.yaml:1:1"]);
    std::os::unix::fs::symlink("..2", world.path("..tmp")).unwrap();
    fs::rename(world.path("..tmp"), world.path("..data")).unwrap();
    assert_eq!(world.after(MOMENT), ["set ConfigMap default/a a.yaml:1:1"]);
    // In place, outside of every watched folder but for the link.
    world.put("..2/a.yaml", &map("a", "3"));
    assert_eq!(world.after(MOMENT), ["set ConfigMap default/a a.yaml:1:1"]);
}

#[test]
fn everything_is_looked_at_again_now_and_then() {
    let (mut world, _) = World::new(&[("a.yaml", &map("a", "1"))]);
    world.watcher.forget_events();
    world.put("a.yaml", &map("a", "22"));
    world.put("x/b.yaml", &map("b", "1"));
    assert_eq!(world.after(SETTLE), [""; 0]);
    let told = world.after(Duration::from_secs(10));
    assert_eq!(told, ["set ConfigMap default/a a.yaml:1:1", "set ConfigMap default/b x/b.yaml:1:1"]);
}

#[test]
fn a_directory_that_vanishes_takes_nothing_with_it_but_is_told() {
    let (mut world, _) = World::new(&[("a.yaml", &map("a", "1"))]);
    let away = tempfile::tempdir().unwrap();
    fs::rename(world.folder.path(), away.path().join("x")).unwrap();
    world.after(SETTLE);
    let told = world.after(Duration::from_secs(10));
    assert!(told.iter().all(|line| !line.starts_with("removed")), "{told:?}");
    fs::create_dir(world.folder.path()).unwrap();
}

#[test]
fn what_cannot_be_a_manifest_is_an_error_of_the_file() {
    let (mut world, _) = World::new(&[]);
    fs::write(world.path("a.yaml"), [0xff, 0xfe]).unwrap();
    world.after(MOMENT);
    assert_eq!(world.after(SETTLE), ["findings [MAN011 a.yaml]"]);
    fs::remove_file(world.path("a.yaml")).unwrap();
    world.after(MOMENT);
    assert_eq!(world.after(SETTLE), ["findings []"]);
}

#[tokio::test]
async fn the_source_tells_first_everything_then_changes_and_ends_with_its_owner() {
    let folder = tempfile::tempdir().unwrap();
    put(folder.path(), "a.yaml", &map("a", "1"));
    let mut source = DirectorySource::open(folder.path(), Options::default()).unwrap();
    let first = source.next().await.unwrap();
    assert_eq!((first.changes.len(), first.complete), (1, true));
    put(folder.path(), "b.yaml", &map("b", "1"));
    let next = source.next().await.unwrap();
    assert_eq!(next.changes.len(), 1);
    assert_eq!(next.changes[0].key().to_string(), "ConfigMap default/b");
    let shared = source.shared.clone();
    drop(source);
    while !shared.pending.lock().ended {
        shared.news.notified().await;
    }
    assert!(DirectorySource::open(folder.path().join("none"), Options::default()).is_err());
}
