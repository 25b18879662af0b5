//! Whether the members that answer are a majority of the cluster's database, asked of each member itself.
//!
//! Owns the memory of members, for a cluster that cannot list them any more, and the judgement. Does not restore anything.

use futures_util::{StreamExt, stream};
use serde::{Deserialize, Serialize};
use std::{
    path::{Path, PathBuf},
    time::Duration,
};
use stead_files::Durability;
use stead_incus::{Client, Endpoint, types::Member};
use stead_model::{Failure, FailureKind};
use stead_os::{PathContext, PathError};

/// How long a member may take to answer the request that every server answers to everybody.
const PROBE: Duration = Duration::from_millis(1000);

/// How many members are probed at the same time.
const AT_ONCE: usize = 32;

/// A member, as it was when the cluster last listed it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KnownMember {
    /// Its name.
    pub name: String,
    /// `address:port`.
    pub address: String,
    /// Whether it holds the database and votes.
    pub votes: bool,
}

impl KnownMember {
    /// From the cluster's list.
    pub fn of(member: &Member) -> Self {
        let votes = |role: &String| role == "database" || role == "database-leader";
        // Old servers have no roles.
        let votes = member.roles.iter().any(votes) || member.roles.is_empty() && member.database;
        let address = member.url.trim_start_matches("https://").to_owned();
        Self { name: member.server_name.clone(), address, votes }
    }
}

/// The members of one cluster, on disk.
#[derive(Debug, Clone)]
pub struct Known {
    path: PathBuf,
    fingerprint: String,
    members: Vec<KnownMember>,
}

impl Known {
    /// What is remembered of a cluster, by the SHA-256 of its certificate.
    pub fn of(directory: &Path, fingerprint: &str) -> Self {
        let path = directory.join(format!("{fingerprint}.members"));
        // A memory that cannot be read is none.
        let members = stead_files::read_json(&path).ok().flatten().unwrap_or_default();
        Self { path, fingerprint: fingerprint.to_owned(), members }
    }

    /// Their names.
    pub fn names(&self) -> Vec<String> {
        self.members.iter().map(|m| m.name.clone()).collect()
    }

    /// Writes them down, if they have changed.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn remember(&self, members: Vec<KnownMember>) -> Result<(), PathError> {
        if members == self.members {
            return Ok(());
        }
        let directory = self.path.parent().unwrap_or(Path::new("."));
        stead_files::private_dir(directory).at("make directory", directory)?;
        stead_files::write_json(&self.path, &members, Durability::Durable).at("write", &self.path)
    }
}

/// Which members answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probed {
    /// Each member, and whether it answered.
    pub members: Vec<(KnownMember, bool)>,
}

impl Probed {
    fn count(&self, fits: impl Fn(&(KnownMember, bool)) -> bool) -> usize {
        self.members.iter().filter(|m| fits(m)).count()
    }

    /// Whether the voters that answer are no majority. Where nobody answers, members may only be out of reach from here:
    /// nothing is concluded from that.
    pub fn is_lost(&self) -> bool {
        let (voters, answer) = (self.count(|(m, _)| m.votes), self.count(|(m, up)| m.votes && *up));
        self.count(|(_, up)| *up) > 0 && voters > 0 && answer * 2 <= voters
    }
}

/// Asks every member that is remembered whether it is there.
pub async fn probe(client: &Client, known: Option<&Known>) -> Probed {
    let Some(known) = known else { return Probed { members: Vec::new() } };
    let members = stream::iter(known.members.clone())
        .map(|member| async move {
            let endpoint = Endpoint::Https {
                address: member.address.clone(),
                fingerprint: known.fingerprint.clone(),
                identity: None,
            };
            let answers = async {
                let client = Client::new(client.dialect(), endpoint).ok()?;
                client.server_info().await.ok()
            };
            let up = tokio::time::timeout(PROBE, answers).await.is_ok_and(|info| info.is_some());
            (member, up)
        })
        .buffered(AT_ONCE)
        .collect()
        .await;
    Probed { members }
}

/// The database has no majority, so the cluster answers nothing that needs it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the cluster has no quorum: of the {voters} members that hold its database {answering} {}, and {} are needed; {} {} not answer",
    if *answering == 1 { "answers" } else { "answer" },
    voters / 2 + 1,
    offline.join(", "),
    if offline.len() == 1 { "does" } else { "do" }
)]
pub struct NoQuorum {
    /// Members that do not answer.
    pub offline: Vec<String>,
    /// Members that hold the database.
    pub voters: usize,
    /// Those of them that answer.
    pub answering: usize,
}

impl From<Probed> for NoQuorum {
    fn from(probed: Probed) -> Self {
        Self {
            voters: probed.count(|(m, _)| m.votes),
            answering: probed.count(|(m, up)| m.votes && *up),
            offline: probed.members.into_iter().filter(|(_, up)| !up).map(|(m, _)| m.name).collect(),
        }
    }
}

impl Failure for NoQuorum {
    fn failure_kind(&self) -> FailureKind {
        FailureKind::Failed
    }
    fn hint(&self) -> Option<String> {
        let needed = self.voters / 2 + 1 - self.answering.min(self.voters / 2);
        Some(format!("start {needed} of them; instances on the other members go on running meanwhile"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn probed(members: &[(&str, bool, bool)]) -> Probed {
        let known = |name: &str, votes| KnownMember { name: name.into(), address: String::new(), votes };
        Probed { members: members.iter().map(|(name, votes, up)| (known(name, *votes), *up)).collect() }
    }

    #[test]
    fn a_majority_of_the_voters_is_needed() {
        assert!(probed(&[("a", true, true), ("b", true, false), ("c", true, false)]).is_lost());
        assert!(!probed(&[("a", true, true), ("b", true, true), ("c", true, false)]).is_lost());
        // Others do not vote.
        assert!(!probed(&[("a", true, true), ("b", false, false), ("c", false, false)]).is_lost());
        assert!(probed(&[("a", true, true), ("b", true, false), ("c", false, true)]).is_lost());
        // Out of reach from here.
        assert!(!probed(&[("a", true, false), ("b", true, false)]).is_lost());
        assert!(!probed(&[]).is_lost());
    }

    #[test]
    fn the_offline_members_and_the_majority_are_named() {
        let lost = NoQuorum::from(probed(&[("a", true, true), ("b", true, false), ("c", true, false)]));
        assert_eq!(
            lost.to_string(),
            "the cluster has no quorum: of the 3 members that hold its database 1 answers, and 2 are needed; b, c do \
             not answer"
        );
        assert!(lost.hint().unwrap().starts_with("start 1 of them"));
        let lost = NoQuorum::from(probed(&[("a", true, true), ("b", true, false)]));
        assert!(lost.to_string().ends_with("2 are needed; b does not answer"), "{lost}");
    }

    #[test]
    fn members_are_remembered() {
        let dir = tempfile::tempdir().unwrap();
        let member = Member {
            server_name: "a".into(),
            url: "https://10.0.0.1:8443".into(),
            roles: vec!["database-leader".into(), "database".into()],
            ..Member::default()
        };
        let known = vec![KnownMember::of(&member)];
        assert_eq!(known[0], KnownMember { name: "a".into(), address: "10.0.0.1:8443".into(), votes: true });
        Known::of(dir.path(), "f00").remember(known).unwrap();
        assert_eq!(Known::of(dir.path(), "f00").names(), ["a"]);
        assert!(Known::of(dir.path(), "f11").names().is_empty());
    }
}
