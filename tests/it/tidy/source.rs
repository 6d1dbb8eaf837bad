//! Reading Rust sources just well enough for the rules: where comments, texts and test code begin and end.

use std::path::{Path, PathBuf};

/// One file.
pub struct Source {
    /// Relative to `src/` (or to the folder that was asked for), with `/`.
    pub path: String,
    /// As it is.
    pub text: String,
    /// Without comments and test code; line numbers are kept.
    pub code: String,
    /// `code` with the inside of every text blanked: identifiers and calls, nothing else.
    pub bare: String,
}

impl Source {
    pub fn new(path: &str, text: &str) -> Self {
        let is_test_file = path.ends_with("/tests.rs");
        let (mut code, mut bare) = without_comments(text);
        if is_test_file {
            code.clear();
            bare.clear();
        }
        for (from, to) in test_modules(&bare) {
            blank(&mut code, from, to);
            blank(&mut bare, from, to);
        }
        Self { path: path.to_owned(), text: text.to_owned(), code, bare }
    }

    /// `path:line` of a byte of `code` or `bare`.
    pub fn line_at(&self, byte: usize) -> String {
        let line = self.bare.as_bytes()[..byte].iter().filter(|b| **b == b'\n').count() + 1;
        format!("{}:{line}", self.path)
    }

    /// Byte places of a word that is not part of a longer identifier.
    pub fn words(&self, word: &str) -> Vec<usize> {
        let is_part = |c: char| c.is_alphanumeric() || c == '_';
        let is_whole = |at: &usize| {
            let before = self.bare[..*at].chars().next_back();
            let after = self.bare[at + word.len()..].chars().next();
            let goes_on_before = word.starts_with(is_part) && before.is_some_and(is_part);
            let goes_on_after = word.ends_with(is_part) && after.is_some_and(is_part);
            !goes_on_before && !goes_on_after
        };
        self.bare.match_indices(word).map(|(at, _)| at).filter(is_whole).collect()
    }

    /// What stands in the parentheses that open at or after `from` (in `bare`): its first and last byte place. Those of a turbofish
    /// (`::<_, (i64,)>`) are not meant.
    pub fn arguments_after(&self, from: usize) -> (usize, usize) {
        let mut angles = 0;
        let is_open = |c: char| {
            angles += i32::from(c == '<') - i32::from(c == '>');
            c == '(' && angles == 0
        };
        let open = from + self.bare[from..].find(is_open).expect("a call has parentheses");
        let mut depth = 0;
        for (at, c) in self.bare[open..].char_indices() {
            match c {
                '(' | '[' | '{' => depth += 1,
                ')' | ']' | '}' => depth -= 1,
                _ => {}
            }
            if depth == 0 {
                return (open + 1, open + at);
            }
        }
        panic!("{}: parentheses that never close", self.line_at(from));
    }

    /// The arguments between two byte places of `bare`, cut at the commas of the outermost level.
    pub fn split_arguments(&self, (from, to): (usize, usize)) -> Vec<(usize, usize)> {
        let mut arguments = Vec::new();
        let (mut depth, mut start) = (0, from);
        for (at, c) in self.bare[from..to].char_indices() {
            match c {
                '(' | '[' | '{' => depth += 1,
                ')' | ']' | '}' => depth -= 1,
                ',' if depth == 0 => {
                    arguments.push((start, from + at));
                    start = from + at + 1;
                }
                _ => {}
            }
        }
        arguments.push((start, to));
        arguments
    }
}

/// Every `.rs` file under a folder of the repository.
pub fn sources_in(folder: &str) -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let mut files = Vec::new();
    find_files(&root, &mut files);
    files.sort();
    let read = |file: &PathBuf| {
        let path = file.strip_prefix(&root).expect("found under it").to_string_lossy().replace('\\', "/");
        Source::new(&path, &std::fs::read_to_string(file).expect("sources are readable"))
    };
    files.iter().map(read).collect()
}

fn find_files(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("sources are readable") {
        let path = entry.expect("sources are readable").path();
        if path.is_dir() {
            find_files(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

/// The text without comments, and that with blanked texts too. Both are as long as the text, byte for byte.
fn without_comments(text: &str) -> (String, String) {
    let bytes = text.as_bytes();
    let (mut code, mut bare) = (bytes.to_vec(), bytes.to_vec());
    let hide = |bytes: &mut Vec<u8>, from: usize, to: usize| {
        bytes[from..to].iter_mut().filter(|b| **b != b'\n').for_each(|b| *b = b' ');
    };
    let mut at = 0;
    while at < bytes.len() {
        let rest = &text[at..];
        if rest.starts_with("//") {
            let end = at + rest.find('\n').unwrap_or(rest.len());
            hide(&mut code, at, end);
            hide(&mut bare, at, end);
            at = end;
        } else if rest.starts_with("/*") {
            let end = at + rest.find("*/").map_or(rest.len(), |end| end + 2);
            hide(&mut code, at, end);
            hide(&mut bare, at, end);
            at = end;
        } else if let Some((inside, end)) = text_literal(rest) {
            hide(&mut bare, at + inside, end.min(rest.len()) + at - closing_len(&rest[..end]));
            at += end;
        } else {
            at += rest.chars().next().map_or(1, char::len_utf8);
            // A raw text begins with r; an identifier that ends with r does not begin one.
            if rest.starts_with(is_identifier) {
                while at < bytes.len() && text[at..].starts_with(is_identifier) {
                    at += 1;
                }
            }
        }
    }
    let utf8 = |bytes| String::from_utf8(bytes).expect("whole characters were blanked");
    (utf8(code), utf8(bare))
}

fn is_identifier(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

/// How many bytes close a literal: its quote and the `#`s of a raw one.
fn closing_len(literal: &str) -> usize {
    literal.len() - literal.trim_end_matches('#').len() + 1
}

/// If a text or character literal begins here: where its inside begins, and where it ends.
fn text_literal(rest: &str) -> Option<(usize, usize)> {
    let unprefixed = rest.strip_prefix('b').unwrap_or(rest);
    if let Some(raw) = unprefixed.strip_prefix('r') {
        let hashes = raw.len() - raw.trim_start_matches('#').len();
        if raw[hashes..].starts_with('"') {
            let inside = rest.len() - raw.len() + hashes + 1;
            let close = format!("\"{}", "#".repeat(hashes));
            let end = rest[inside..].find(&close).map_or(rest.len(), |end| inside + end + close.len());
            return Some((inside, end));
        }
    }
    let quote = unprefixed.chars().next().filter(|c| matches!(c, '"' | '\''))?;
    let inside = rest.len() - unprefixed.len() + 1;
    if quote == '\'' {
        // 'a or '_ without a closing quote is a lifetime.
        let mut chars = rest[inside..].char_indices();
        let (_, first) = chars.next()?;
        let second = chars.next();
        if first != '\\' && second.is_none_or(|(_, c)| c != '\'') {
            return None;
        }
    }
    let mut is_escaped = false;
    for (at, c) in rest[inside..].char_indices() {
        match c {
            _ if is_escaped => is_escaped = false,
            '\\' => is_escaped = true,
            c if c == quote => return Some((inside, inside + at + 1)),
            _ => {}
        }
    }
    Some((inside, rest.len()))
}

/// From each `#[cfg(test)]` to the end of what it stands before.
fn test_modules(bare: &str) -> Vec<(usize, usize)> {
    let end_of = |from: usize| {
        let mut depth = 0;
        for (at, c) in bare[from..].char_indices() {
            match c {
                '{' => depth += 1,
                '}' => depth -= 1,
                ';' if depth == 0 => return from + at + 1,
                _ => {}
            }
            if depth == 0 && c == '}' {
                return from + at + 1;
            }
        }
        bare.len()
    };
    bare.match_indices("#[cfg(test)]").map(|(at, _)| (at, end_of(at))).collect()
}

fn blank(text: &mut String, from: usize, to: usize) {
    let blanks: String = text[from..to].bytes().map(|b| if b == b'\n' { '\n' } else { ' ' }).collect();
    text.replace_range(from..to, &blanks);
}
