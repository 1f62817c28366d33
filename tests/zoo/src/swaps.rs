//! Paths that an owner swaps for those of the library, from `swaps.txt`: file, the path or type as
//! written, and what takes its place. Imports stay, and so does every other line.

use crate::attributes::below_models;
use anyhow::{Context, Result};
use proc_macro2::{LineColumn, Span, TokenStream};
use quote::ToTokens;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use syn::punctuated::Punctuated;
use syn::spanned::Spanned;
use syn::visit::{self, Visit};
use syn::{Expr, ExprPath, Macro, Token, Type};

/// By file: what is written, as tokens, and what takes its place.
pub struct Swaps(HashMap<String, HashMap<String, String>>);

impl Swaps {
    pub fn parse(text: &str) -> Result<Self> {
        let lines = text
            .lines()
            .filter(|line| !line.is_empty() && !line.starts_with("//"));
        let mut all: HashMap<String, HashMap<String, String>> = HashMap::new();
        for line in lines {
            let parts: Vec<&str> = line.split('|').map(str::trim).collect();
            let &[file, written, ours] = &parts[..] else {
                anyhow::bail!("three parts: {line}");
            };
            let written: TokenStream = written.parse().ok().with_context(|| line.to_string())?;
            let swaps = all.entry(file.to_string()).or_default();
            swaps.insert(written.to_string(), ours.to_string());
        }
        Ok(Self(all))
    }

    /// True if there are swaps for one of the files.
    pub fn concern<'a>(&self, mut files: impl Iterator<Item = &'a PathBuf>) -> bool {
        files.any(|file| self.0.contains_key(&below_models(file)))
    }

    /// The files with all swaps made.
    pub fn apply(&self, files: &mut BTreeMap<PathBuf, String>) -> Result<()> {
        for (path, text) in files {
            if let Some(swaps) = self.0.get(&below_models(path)) {
                *text = swapped(path, text, swaps)?;
            }
        }
        Ok(())
    }
}

fn swapped(path: &Path, text: &str, swaps: &HashMap<String, String>) -> Result<String> {
    let file = syn::parse_file(text).with_context(|| format!("cannot parse {}", path.display()))?;
    let mut search = Search {
        swaps,
        found: Vec::new(),
    };
    search.visit_file(&file);
    let mut lines: Vec<String> = text.lines().map(String::from).collect();
    search.found.sort_by_key(|(start, ..)| *start);
    for (start, end, ours) in search.found.into_iter().rev() {
        anyhow::ensure!(start.line == end.line, "{} is not on one line", ours);
        let line = &mut lines[start.line - 1];
        // Columns count characters.
        let byte = |column: usize| {
            let mut places = line.char_indices().map(|(byte, _)| byte);
            places.nth(column).unwrap_or(line.len())
        };
        let range = byte(start.column)..byte(end.column);
        line.replace_range(range, &ours);
    }
    Ok(lines.join("\n") + "\n")
}

/// Finds the paths in types and expressions.
struct Search<'a> {
    swaps: &'a HashMap<String, String>,
    found: Vec<(LineColumn, LineColumn, String)>,
}

impl Search<'_> {
    fn find(&mut self, tokens: impl ToTokens, span: Span) -> bool {
        let ours = self.swaps.get(&tokens.to_token_stream().to_string());
        let found = ours.map(|ours| (span.start(), span.end(), ours.clone()));
        self.found.extend(found);
        ours.is_some()
    }
}

impl<'ast> Visit<'ast> for Search<'_> {
    fn visit_type(&mut self, ty: &'ast Type) {
        if !self.find(ty, ty.span()) {
            visit::visit_type(self, ty);
        }
    }

    /// Of macros only those whose arguments read as expressions, such as `vec!`.
    fn visit_macro(&mut self, call: &'ast Macro) {
        let parse = Punctuated::<Expr, Token![,]>::parse_terminated;
        if let Ok(arguments) = call.parse_body_with(parse) {
            let mut inner = Search {
                swaps: self.swaps,
                found: Vec::new(),
            };
            for argument in &arguments {
                inner.visit_expr(argument);
            }
            self.found.extend(inner.found);
        }
    }

    fn visit_expr_path(&mut self, path: &'ast ExprPath) {
        if !self.find(path, path.span()) {
            visit::visit_expr_path(self, path);
        }
    }
}
