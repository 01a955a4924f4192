//! What is replaced, when, and what never is.

use super::*;
use crate::archive::FORMAT_KEY;
use std::io::Write;

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = entries.collect();
    names.sort();
    names
}

/// A compressed model of no tensors, with this text in it.
fn model(text: &str) -> Vec<u8> {
    let header = format!(r#"{{"__metadata__":{{"{FORMAT_KEY}":"1","text":"{text}"}}}}"#);
    [&(header.len() as u64).to_le_bytes(), header.as_bytes()].concat()
}

fn fill(stage: Stage, text: &str) -> Result<()> {
    stage.model()?.write_all(&model(text)).unwrap();
    stage.commit()
}

fn refusal(stage: Result<Stage>) -> String {
    stage.err().unwrap().to_string()
}

#[test]
fn a_dropped_stage_leaves_nothing() {
    let room = tempfile::tempdir().unwrap();
    for begin in [Stage::file, Stage::directory] {
        let stage = begin(room.path().join("a"), false, &[]).unwrap();
        stage.model().unwrap().write_all(b"half").unwrap();
        assert_eq!(names(room.path()).len(), 1);
        drop(stage);
        assert!(names(room.path()).is_empty());
    }
}

#[test]
fn outputs_get_their_names_and_old_ones_stay_until_asked() {
    let room = tempfile::tempdir().unwrap();
    let (file, directory) = (room.path().join("a"), room.path().join("b"));
    fill(Stage::file(&file, false, &[]).unwrap(), "one").unwrap();
    fill(Stage::directory(&directory, false, &[]).unwrap(), "one").unwrap();
    assert!(matches!(Stage::file(&file, false, &[]), Err(Error::Exists { .. })));
    assert!(matches!(Stage::directory(&directory, false, &[]), Err(Error::Exists { .. })));
    fill(Stage::file(&file, true, &[]).unwrap(), "two").unwrap();
    fill(Stage::directory(&directory, true, &[]).unwrap(), "two").unwrap();
    assert_eq!(fs::read(&file).unwrap(), model("two"));
    assert_eq!(fs::read(directory.join(MODEL_FILE)).unwrap(), model("two"));
    assert_eq!(names(room.path()), ["a", "b"]);
}

#[test]
fn what_appears_meanwhile_is_not_overwritten() {
    let room = tempfile::tempdir().unwrap();
    let (file, directory) = (room.path().join("a"), room.path().join("b"));
    let stages =
        || (Stage::file(&file, false, &[]).unwrap(), Stage::directory(&directory, false, &[]).unwrap());
    let (one, two) = stages();
    fs::write(&file, "theirs").unwrap();
    fs::create_dir(&directory).unwrap();
    assert!(matches!(fill(one, "ours"), Err(Error::Exists { .. })));
    assert!(matches!(fill(two, "ours"), Err(Error::Exists { .. })));
    assert_eq!(fs::read_to_string(&file).unwrap(), "theirs");
    assert!(names(&directory).is_empty());
    assert_eq!(names(room.path()), ["a", "b"]);
    // Nor, where an output may be overwritten, what is none.
    let (one, two) = (Stage::file(&file, true, &[]).unwrap(), Stage::directory(&directory, true, &[]));
    fs::remove_file(&file).unwrap();
    fs::create_dir(&file).unwrap();
    fs::write(directory.join("letters.txt"), "dear").unwrap();
    assert!(fill(one, "ours").unwrap_err().to_string().contains("is a directory"));
    assert!(fill(two.unwrap(), "ours").unwrap_err().to_string().contains("letters.txt"));
    assert_eq!(names(&directory), ["letters.txt"]);
    assert_eq!(names(room.path()), ["a", "b"]);
}

#[test]
fn a_directory_of_anything_else_is_never_replaced() {
    let room = tempfile::tempdir().unwrap();
    let home = room.path().join("home");
    for (name, text, reason) in [
        ("letters.txt", &b"dear"[..], "letters.txt"),
        ("README.md", b"# mine", "no model.safetensors"),
        (MODEL_FILE, b"\x02\0\0\0\0\0\0\0{}", "not compressed"),
        (MODEL_FILE, b"damaged", "cannot be read"),
    ] {
        fs::create_dir(&home).unwrap();
        fs::write(home.join(name), text).unwrap();
        let error = refusal(Stage::directory(&home, true, &[]));
        assert!(error.contains(reason) && error.contains("not overwritten"), "{error}");
        assert_eq!(names(&home), [name]);
        fs::remove_dir_all(&home).unwrap();
    }
    fill(Stage::directory(&home, false, &[]).unwrap(), "one").unwrap();
    fs::create_dir(home.join("LICENSE")).unwrap();
    assert!(refusal(Stage::directory(&home, true, &[])).contains("LICENSE"));
}

#[test]
fn an_input_is_never_replaced() {
    let room = tempfile::tempdir().unwrap();
    let (model, text) = (room.path().join("model"), room.path().join("text"));
    fill(Stage::directory(&model, false, &[]).unwrap(), "one").unwrap();
    fs::write(&text, "text").unwrap();
    fs::write(model.join("config.json"), "{}").unwrap();
    let weights = model.join(MODEL_FILE);
    for (destination, input, reason) in [
        (&text, &text, "the input itself"),
        (&weights, &weights, "the input itself"),
        (&room.path().join("model/../text"), &text, "the input itself"),
        (&model.join("config.json"), &weights, "a part of the input"),
        (&model.join("config.json"), &model, "a part of the input"),
    ] {
        let error = refusal(Stage::file(destination, true, &[input]));
        assert!(error.contains(reason), "{error}");
    }
    for (input, reason) in [(&model, "the input itself"), (&weights, "holds an input")] {
        let error = refusal(Stage::directory(&model, true, &[&text, input]));
        assert!(error.contains(reason), "{error}");
    }
}

#[cfg(unix)]
#[test]
fn devices_fifos_sockets_and_links_are_never_replaced() {
    let room = tempfile::tempdir().unwrap();
    let path = |name: &str| room.path().join(name);
    let made = std::process::Command::new("mkfifo").arg(path("fifo")).status().unwrap();
    assert!(made.success());
    let _socket = std::os::unix::net::UnixListener::bind(path("socket")).unwrap();
    fs::write(path("file"), "mine").unwrap();
    fs::create_dir(path("directory")).unwrap();
    std::os::unix::fs::symlink("file", path("link")).unwrap();
    std::os::unix::fs::symlink("directory", path("link-to-directory")).unwrap();
    std::os::unix::fs::symlink("absent", path("loose-link")).unwrap();
    let before = names(room.path());
    let null = Path::new("/dev/null").to_owned();
    for begin in [Stage::file, Stage::directory] {
        for (there, reason) in [
            (&null, "is a device, a FIFO or a socket"),
            (&path("fifo"), "is a device, a FIFO or a socket"),
            (&path("socket"), "is a device, a FIFO or a socket"),
            (&path("link"), "is a symbolic link"),
            (&path("link-to-directory"), "is a symbolic link"),
            (&path("link-to-directory/"), "is a symbolic link"),
            (&path("loose-link"), "is a symbolic link"),
        ] {
            let error = refusal(begin(there.clone(), true, &[]));
            assert!(error.contains(reason), "{}: {error}", there.display());
        }
    }
    assert_eq!(names(room.path()), before);
}

#[test]
fn at_no_moment_is_there_nothing_under_the_name() {
    let room = tempfile::tempdir().unwrap();
    let (file, directory) = (room.path().join("a"), room.path().join("b"));
    fill(Stage::file(&file, false, &[]).unwrap(), "x").unwrap();
    fill(Stage::directory(&directory, false, &[]).unwrap(), "x").unwrap();
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watch = scope.spawn(|| {
            let mut gaps = 0;
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                gaps += usize::from(file.symlink_metadata().is_err());
                gaps += usize::from(directory.join(MODEL_FILE).symlink_metadata().is_err());
            }
            gaps
        });
        for n in 0..100 {
            fill(Stage::file(&file, true, &[]).unwrap(), &n.to_string()).unwrap();
            fill(Stage::directory(&directory, true, &[]).unwrap(), &n.to_string()).unwrap();
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        // Where names cannot be exchanged, a directory is replaced in two steps.
        let exchanges = cfg!(any(target_os = "linux", target_vendor = "apple"));
        assert!(watch.join().unwrap() == 0 || !exchanges);
    });
    assert_eq!(fs::read(directory.join(MODEL_FILE)).unwrap(), model("99"));
    assert_eq!(names(room.path()), ["a", "b"]);
}

#[test]
fn a_second_try_takes_the_place_of_the_first() {
    let room = tempfile::tempdir().unwrap();
    let stage = Stage::directory(room.path().join("a"), false, &[]).unwrap();
    stage.model().unwrap().write_all(b"a longer first try").unwrap();
    fill(stage, "two").unwrap();
    assert_eq!(fs::read(room.path().join("a").join(MODEL_FILE)).unwrap(), model("two"));
}

#[test]
fn what_is_no_name_for_an_output_is_refused() {
    for name in [".", "..", "/", ""] {
        let error = refusal(Stage::directory(name, true, &[]));
        assert!(error.contains("is no name for an output"), "{name}: {error}");
    }
}

#[cfg(unix)]
#[test]
fn rights_are_those_of_any_new_file() {
    use std::os::unix::fs::MetadataExt;
    let room = tempfile::tempdir().unwrap();
    let mode = |name: &str| fs::metadata(room.path().join(name)).unwrap().mode() & 0o777;
    fs::write(room.path().join("plain"), "").unwrap();
    fs::create_dir(room.path().join("plain-directory")).unwrap();
    fill(Stage::file(room.path().join("a"), false, &[]).unwrap(), "").unwrap();
    fill(Stage::directory(room.path().join("b"), false, &[]).unwrap(), "").unwrap();
    assert_eq!(mode("a"), mode("plain"));
    assert_eq!(mode("b"), mode("plain-directory"));
}

#[test]
fn what_is_in_use_is_told_from_what_fails_otherwise() {
    let told = |code: i32| {
        let error = std::io::Error::from_raw_os_error(code);
        not_replaced(Path::new("model.safetensors"), error, &IN_USE).to_string()
    };
    for code in IN_USE {
        let error = told(code);
        assert!(error.starts_with("model.safetensors: cannot be replaced while it is in use ("), "{error}");
        assert!(error.contains("drop the model first"), "{error}");
    }
    assert!(!told(2).contains("in use"));
}
