//! Where the programs write: whole or not at all, and over nothing that is not theirs.

use crate::common::{checkpoint, config, input, message, model, snapshot};
use anyhow::Result;
use lora_examples::bundled::find;
use lora_examples::checkpoint::Checkpoint;
use lora_examples::output::Output;
use std::fs;
use std::path::{Path, PathBuf};

/// Publishes two files with these contents; an empty one is not made.
fn publish(place: &Path, texts: [&str; 2]) -> Result<Vec<PathBuf>> {
    let output = Output::new(place, "finetune", &["a", "inside/b"])?;
    fs::create_dir(output.draft("inside"))?;
    for (name, text) in ["a", "inside/b"].into_iter().zip(texts) {
        if !text.is_empty() {
            fs::write(output.draft(name), text)?;
        }
    }
    output.publish()
}

/// The contents of all files but the list.
fn contents(place: &Path) -> Result<Vec<String>> {
    let files = snapshot(place)?.into_iter();
    let files = files.filter(|(path, _)| !path.ends_with("finetune.json"));
    files
        .map(|(_, bytes)| Ok(String::from_utf8(bytes)?))
        .collect()
}

#[test]
fn output_appears_whole_or_not_at_all() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let place = dir.path().join("deep/out");
    // Nothing published: no trace.
    drop(Output::new(&place, "finetune", &["a"])?);
    assert!(message(publish(&place, ["1", ""])).contains("no inside/b was made"));
    assert!(!dir.path().join("deep").exists());

    assert_eq!(
        publish(&place, ["1", "2"])?,
        [place.join("a"), place.join("inside")]
    );
    fs::write(place.join("c"), "not ours")?;
    publish(&place, ["3", "4"])?;
    assert_eq!(contents(&place)?, ["3", "not ours", "4"]);
    assert!(message(publish(&place, ["5", ""])).contains("no inside/b was made"));
    assert_eq!(contents(&place)?, ["3", "not ours", "4"]);

    // A file where the folder should be.
    let error = message(Output::new(&place.join("a"), "finetune", &["a"]));
    assert!(error.contains("cannot write to output folder"), "{error}");
    assert_eq!(contents(&place)?, ["3", "not ours", "4"]);
    Ok(())
}

#[test]
fn a_move_that_fails_is_taken_back() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let output = Output::new(dir.path(), "finetune", &["a", "inside/b"])?;
    fs::write(output.draft("a"), "1")?;
    fs::create_dir(output.draft("inside"))?;
    fs::write(output.draft("inside/b"), "2")?;
    // In the way of the second file, when the first is in its place.
    fs::create_dir(output.draft("earlier"))?;
    fs::write(output.draft("earlier/inside"), "")?;
    assert!(message(output.publish()).contains("cannot put"));
    assert_eq!(fs::read_dir(dir.path())?.count(), 0);
    Ok(())
}

#[test]
fn what_a_run_did_not_write_stays() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let place = dir.path();
    let refused = |path: &str, why: &str| -> Result<()> {
        let before = snapshot(place)?;
        let error = message(publish(place, ["7", "8"]));
        let expected = format!(
            "{} stands where a result goes, and {why}: move it, or choose another --output",
            place.join(path).display()
        );
        assert_eq!(error, expected);
        assert_eq!(snapshot(place)?, before);
        Ok(())
    };
    fs::write(place.join("a"), "mine")?;
    refused("a", "it is not as an earlier run wrote it")?;
    fs::remove_file(place.join("a"))?;
    fs::create_dir(place.join("a"))?;
    fs::write(place.join("a/mine.txt"), "mine")?;
    refused("a", "it is not a file")?;
    fs::remove_dir_all(place.join("a"))?;
    #[cfg(unix)]
    {
        fs::write(place.join("inside"), "mine")?;
        refused("inside", "it is not a folder")?;
        fs::remove_file(place.join("inside"))?;
        let elsewhere = tempfile::NamedTempFile::new()?;
        std::os::unix::fs::symlink(elsewhere.path(), place.join("a"))?;
        refused("a", "it is not a file")?;
        fs::remove_file(place.join("a"))?;
    }

    publish(place, ["1", "2"])?;
    // Files beside the results stay, also in their folder.
    fs::create_dir(place.join("inside/sub"))?;
    fs::write(place.join("inside/sub/mine.txt"), "mine")?;
    publish(place, ["3", "4"])?;
    assert_eq!(contents(place)?, ["3", "4", "mine"]);
    // A result that somebody changed is theirs, one that they removed is made again.
    fs::write(place.join("inside/b"), "mine")?;
    refused("inside/b", "it is not as an earlier run wrote it")?;
    fs::remove_file(place.join("inside/b"))?;
    publish(place, ["5", "6"])?;
    assert_eq!(contents(place)?, ["5", "6", "mine"]);
    fs::write(place.join("finetune.json"), "mine")?;
    refused(
        "finetune.json",
        "it is not the list that this program writes",
    )?;
    Ok(())
}

#[test]
fn a_checkpoint_that_cannot_be_written_shows_before_the_training() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let check = |name: &str| message(Checkpoint::check_output(&dir.path().join(name)));
    let file = checkpoint(dir.path())?;
    let before = snapshot(dir.path())?;
    assert!(check("").contains("is a folder"), "{}", check(""));
    assert!(check("base.json").contains("must not end with .json"));
    assert!(check("base.safetensors/x").contains("cannot write --output"));
    fs::write(dir.path().join("other.json"), "{}")?;
    let error = check("other.safetensors");
    assert!(
        error.contains("other.json stands where the description"),
        "{error}"
    );
    fs::remove_file(dir.path().join("other.json"))?;

    Checkpoint::check_output(&file)?;
    assert_eq!(snapshot(dir.path())?, before);
    Checkpoint::write(&file, &model(&config())?, &input())?;
    assert_eq!(snapshot(dir.path())?, before);
    let new = dir.path().join("new/deep/x.safetensors");
    Checkpoint::check_output(&new)?;
    assert_eq!(fs::read_dir(new.parent().unwrap())?.count(), 0);
    Ok(())
}

#[test]
fn the_data_is_found_wherever_the_repository_is() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let dir = dir.path();
    for repository in ["first", "second"] {
        fs::create_dir_all(dir.join(repository).join("examples/data/digits"))?;
        fs::create_dir_all(dir.join(repository).join("target/release/examples"))?;
    }
    let program = dir.join("first/target/release/examples");
    let found = |here: &str| find("digits", &[&dir.join(here), &program]);
    // The working directory goes first, then that of the program; each with the folders above.
    assert_eq!(found("second")?, dir.join("second/examples/data/digits"));
    assert_eq!(
        found("second/target")?,
        dir.join("second/examples/data/digits")
    );
    assert_eq!(found("elsewhere")?, dir.join("first/examples/data/digits"));
    fs::rename(dir.join("first"), dir.join("moved"))?;
    let moved = dir.join("moved/target/release/examples");
    let digits = dir.join("moved/examples/data/digits");
    assert_eq!(find("digits", &[dir, &moved])?, digits);
    let error = message(found("elsewhere"));
    let looked = format!(
        "it is neither in {} nor in {} nor in a folder above",
        dir.join("elsewhere").display(),
        program.display()
    );
    assert!(error.contains(&looked), "{error}");
    Ok(())
}
