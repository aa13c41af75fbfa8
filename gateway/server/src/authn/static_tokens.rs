//! Tokens from a file, each with its user: `token,user,uid,"group1,group2"` (kube-apiserver's `--token-auth-file`).

use std::collections::HashMap;
use std::path::Path;

use super::Identity;
use crate::settings;

/// The tokens, by the digest of each: looking one up tells by its time nothing about the others.
#[derive(Default)]
pub(super) struct StaticTokens {
    users: HashMap<Vec<u8>, Identity>,
}

impl StaticTokens {
    /// Reads the file.
    pub fn read(path: &Path) -> Result<Self, settings::Error> {
        let failed = |source| settings::Error::Read { path: path.to_owned(), source };
        let text = std::fs::read_to_string(path).map_err(failed)?;
        Self::parse(&text).map_err(|line| settings::Error::Invalid {
            what: format!("{}, line {line}", path.display()),
            why: "expected token,user,uid and perhaps \"group1,group2\"".to_owned(),
        })
    }

    /// The tokens of a file's text, or the number of the line that is none.
    fn parse(text: &str) -> Result<Self, usize> {
        let mut users = HashMap::new();
        for (number, line) in text.lines().enumerate() {
            if line.trim().is_empty() || line.starts_with('#') {
                continue;
            }
            let fields = split(line);
            let [token, user, uid, groups @ ..] = fields.as_slice() else { return Err(number + 1) };
            if token.is_empty() || user.is_empty() {
                return Err(number + 1);
            }
            let groups = groups.first().map(String::as_str).unwrap_or_default().split(',').map(str::trim);
            let groups = groups.filter(|group| !group.is_empty()).map(str::to_owned);
            let mut identity = Identity::authenticated(user, groups);
            identity.uid.clone_from(uid);
            users.insert(digest(token), identity);
        }
        Ok(Self { users })
    }

    /// Whose token it is.
    pub fn find(&self, token: &str) -> Option<Identity> {
        if self.users.is_empty() {
            return None;
        }
        self.users.get(&digest(token)).cloned()
    }
}

fn digest(token: &str) -> Vec<u8> {
    aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, token.as_bytes()).as_ref().to_vec()
}

/// The fields of a line of comma-separated values; a quoted one may hold commas.
fn split(line: &str) -> Vec<String> {
    let mut fields = vec![String::new()];
    let mut quoted = false;
    for c in line.chars() {
        match c {
            '"' => quoted = !quoted,
            ',' if !quoted => fields.push(String::new()),
            c => fields.last_mut().expect("there is always one").push(c),
        }
    }
    fields.iter().map(|field| field.trim().to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_gives_a_user_with_groups() {
        let tokens = StaticTokens::parse("t1,alice,u1,\"dev,ops\"\n\nt2,bob,u2\n").expect("good");
        let alice = tokens.find("t1").expect("known");
        assert_eq!((alice.user.as_str(), alice.uid.as_str()), ("alice", "u1"));
        assert_eq!(alice.groups, ["dev", "ops", "system:authenticated"]);
        assert_eq!(tokens.find("t2").expect("known").groups, ["system:authenticated"]);
        assert!(tokens.find("t").is_none() && tokens.find("").is_none());
        assert_eq!(StaticTokens::parse("a,b,c\nt2,bob").err(), Some(2));
    }
}
