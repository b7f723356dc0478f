//! Patterns: wildcards and policy variables, in the ways in which actions, resources, strings and ARNs are compared. Knows the
//! request's keys only to fill variables in.

use super::context::Context;

/// One element of a pattern as it is written.
#[derive(Debug, Clone, PartialEq)]
enum Piece {
    /// Itself.
    Char(char),
    /// `?`: any one character.
    One,
    /// `*`: any number of them.
    Run,
    /// `${key}` or `${key, 'default'}`: the one value of the key, or the default; never a wildcard, whatever it holds.
    Variable { key: String, default: Option<String> },
}

/// A pattern of a document.
#[derive(Debug, Clone, PartialEq)]
pub struct Pattern(Vec<Piece>);

/// What comparing said. Doubt is a variable without a value, or a value of the wrong kind: no match, but no reason for the
/// opposite either.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Match {
    Yes,
    No,
    Doubt,
}

impl From<bool> for Match {
    fn from(yes: bool) -> Self {
        if yes { Match::Yes } else { Match::No }
    }
}

/// What may stand in a pattern besides characters that mean themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Syntax {
    /// `*` and `?` are wildcards.
    pub wildcards: bool,
    /// `${...}` is a variable: in documents of version 2012-10-17.
    pub variables: bool,
}

impl Pattern {
    /// The reason is for whoever wrote the document.
    pub fn parse(text: &str, syntax: Syntax) -> Result<Self, String> {
        let mut pieces = Vec::new();
        let mut rest = text;
        while let Some(c) = rest.chars().next() {
            if syntax.variables && rest.starts_with("${") {
                let end = variable_end(rest).ok_or("a policy variable has no closing brace")?;
                pieces.push(variable(&rest[2..end])?);
                rest = &rest[end + 1..];
                continue;
            }
            pieces.push(match c {
                '?' if syntax.wildcards => Piece::One,
                '*' if syntax.wildcards => Piece::Run,
                c => Piece::Char(c),
            });
            rest = &rest[c.len_utf8()..];
        }
        Ok(Self(pieces))
    }
    /// Without variables, lower-cased: for actions.
    pub fn ignoring_case(text: &str) -> Self {
        let piece = |c| match c {
            '?' => Piece::One,
            '*' => Piece::Run,
            c => Piece::Char(c),
        };
        Self(text.to_lowercase().chars().map(piece).collect())
    }
    pub fn has_variables(&self) -> bool {
        self.0.iter().any(|piece| matches!(piece, Piece::Variable { .. }))
    }
    /// Whether the pattern can be read as an ARN's: six parts, or `*` alone.
    pub fn is_arn(&self) -> bool {
        self.0 == [Piece::Run] || self.has_variables() || self.0.iter().filter(|p| **p == Piece::Char(':')).count() >= 5
    }
    /// Whole subject against whole pattern, case counts.
    pub fn matches(&self, subject: &str, context: &Context) -> Match {
        self.filled(context).map_or(Match::Doubt, |pieces| glob(&pieces, subject, Colons::Ordinary).into())
    }
    /// As [`Pattern::matches`], and a subject that has no case: an action, in lower case.
    pub fn matches_lower(&self, subject: &str) -> bool {
        glob(&self.0, subject, Colons::Ordinary)
    }
    /// The same text in any case; wildcards have no meaning here.
    pub fn equals_ignoring_case(&self, subject: &str, context: &Context) -> Match {
        let Some(pieces) = self.filled(context) else { return Match::Doubt };
        let text: String = pieces.iter().filter_map(|p| if let Piece::Char(c) = p { Some(*c) } else { None }).collect();
        (text.to_lowercase() == subject.to_lowercase()).into()
    }
    /// A resource: wildcards stay inside a part between colons, but for a `*` at the end of one.
    pub fn matches_resource(&self, subject: &str, context: &Context) -> Match {
        self.filled(context).map_or(Match::Doubt, |pieces| glob(&pieces, subject, Colons::Bound).into())
    }
    /// An ARN: each of the six parts against its own pattern. A subject that is none is in doubt.
    pub fn matches_arn(&self, subject: &str, context: &Context) -> Match {
        let parts: Vec<&str> = subject.splitn(6, ':').collect();
        if parts.len() != 6 || parts[0] != "arn" {
            return Match::Doubt;
        }
        if self.0 == [Piece::Run] {
            return Match::Yes;
        }
        let patterns: Vec<&[Piece]> = self.0.splitn(6, |piece| *piece == Piece::Char(':')).collect();
        if patterns.len() != 6 {
            return Match::No;
        }
        let filled: Option<Vec<_>> = patterns.iter().map(|pieces| fill(pieces, context)).collect();
        let Some(filled) = filled else { return Match::Doubt };
        filled.iter().zip(parts).all(|(pieces, part)| glob(pieces, part, Colons::Ordinary)).into()
    }
    fn filled(&self, context: &Context) -> Option<Vec<Piece>> {
        fill(&self.0, context)
    }
}

/// The place of the brace that closes the variable at the start of `text`, where a default in quotes may hold one.
fn variable_end(text: &str) -> Option<usize> {
    let mut quoted = false;
    for (at, c) in text.char_indices().skip(2) {
        match c {
            '\'' => quoted = !quoted,
            '}' if !quoted => return Some(at),
            _ => {}
        }
    }
    None
}
fn variable(body: &str) -> Result<Piece, String> {
    if let "*" | "?" | "$" = body {
        return Ok(Piece::Char(body.chars().next().unwrap_or('$')));
    }
    let (key, default) = match body.split_once(',') {
        None => (body.trim(), None),
        Some((key, default)) => {
            let inner = default.trim().strip_prefix('\'').and_then(|rest| rest.strip_suffix('\''));
            (key.trim(), Some(inner.ok_or("the default of a policy variable stands in single quotes")?.to_owned()))
        }
    };
    if !key.contains(':') || key.chars().any(|c| c.is_whitespace() || "{}$*?".contains(c)) {
        return Err("a policy variable names no condition key".to_owned());
    }
    Ok(Piece::Variable { key: key.to_lowercase(), default })
}

/// Variables by their values as plain characters; nothing where one has no value, or several.
fn fill(pieces: &[Piece], context: &Context) -> Option<Vec<Piece>> {
    let mut filled = Vec::with_capacity(pieces.len());
    for piece in pieces {
        match piece {
            Piece::Variable { key, default } => {
                let value = match (context.values(key), default) {
                    ([one], _) => one,
                    ([], Some(default)) => default,
                    _ => return None,
                };
                filled.extend(value.chars().map(Piece::Char));
            }
            other => filled.push(other.clone()),
        }
    }
    Some(filled)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Colons {
    /// A colon is a character like others.
    Ordinary,
    /// `?` and `*` do not match colons, but for a `*` that ends a part.
    Bound,
}

/// Whether `subject` is one of the texts that `pieces` describe: all ends that the pattern could have reached, a character
/// at a time. Time is the product of the lengths, memory the length of the pattern.
fn glob(pieces: &[Piece], subject: &str, colons: Colons) -> bool {
    let crosses =
        |at: usize| colons == Colons::Ordinary || pieces.get(at + 1).is_none_or(|next| *next == Piece::Char(':'));
    // Behind a run stands also whatever the run matches as nothing.
    let skip_runs = |reached: &mut Vec<bool>| {
        for at in 0..pieces.len() {
            if reached[at] && pieces[at] == Piece::Run {
                reached[at + 1] = true;
            }
        }
    };
    let mut reached = vec![false; pieces.len() + 1];
    reached[0] = true;
    skip_runs(&mut reached);
    for c in subject.chars() {
        let mut next = vec![false; pieces.len() + 1];
        let mut any = false;
        for at in (0..pieces.len()).filter(|at| reached[*at]) {
            let to = match &pieces[at] {
                Piece::Char(own) if *own == c => at + 1,
                Piece::One if colons == Colons::Ordinary || c != ':' => at + 1,
                Piece::Run if c != ':' || crosses(at) => at,
                Piece::Char(_) | Piece::One | Piece::Run | Piece::Variable { .. } => continue,
            };
            next[to] = true;
            any = true;
        }
        if !any {
            return false;
        }
        skip_runs(&mut next);
        reached = next;
    }
    reached[pieces.len()]
}
