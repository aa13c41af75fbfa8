//! Whose credentials have opened an image: it is here for those who could have pulled it themselves.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::Credential;
use crate::digest::Digest;

/// Who may use an image without asking its registry.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Access {
    /// It was imported, or pulled without credentials or with the machine's own.
    #[default]
    Anybody,
    /// Who has one of the credentials with which it was pulled. Of these only digests are kept.
    With(BTreeSet<Digest>),
}

impl Access {
    /// After a pull with this credential.
    pub fn by(credential: Option<&Credential>) -> Self {
        match credential {
            Some(credential) if !credential.shared => Self::With(BTreeSet::from([digest(credential)])),
            _ => Self::Anybody,
        }
    }

    /// After another pull of the same image.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        match (self, other) {
            (Self::With(mut some), Self::With(others)) => {
                some.extend(others);
                Self::With(some)
            }
            _ => Self::Anybody,
        }
    }

    pub fn is_for(&self, credentials: &[Credential]) -> bool {
        match self {
            Self::Anybody => true,
            Self::With(known) => credentials.iter().any(|credential| known.contains(&digest(credential))),
        }
    }
}

fn digest(credential: &Credential) -> Digest {
    let Credential { registry: _, username, password, identity_token, shared: _ } = credential;
    let token = identity_token.as_deref().unwrap_or_default();
    // Each with its length: no two make the same text.
    let parts = [username, password, token].map(|part| format!("{}:{part}", part.len()));
    Digest::of(parts.concat().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_for_who_could_have_pulled_it() {
        let key = |username: &str, password: &str| Credential {
            registry: "example.org".to_owned(),
            username: username.to_owned(),
            password: password.to_owned(),
            ..Credential::default()
        };
        let (one, other) = (key("a", "bc"), key("ab", "c"));
        let access = Access::by(Some(&one));
        assert!(access.is_for(&[other.clone(), one.clone()]));
        assert!(!access.is_for(std::slice::from_ref(&other)) && !access.is_for(&[]));
        let both = access.clone().or(Access::by(Some(&other)));
        assert!(both.is_for(&[one]) && both.is_for(std::slice::from_ref(&other)) && !both.is_for(&[]));
        let machine = Credential { shared: true, ..other };
        for anybody in [Access::by(None), Access::by(Some(&machine)), access.or(Access::Anybody)] {
            assert!(anybody.is_for(&[]));
        }
    }
}
