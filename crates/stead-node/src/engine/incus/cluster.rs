//! A member's actions on the cluster on behalf of others: clearing the way for one that joins again, removing one.

use super::{IncusError, chain, engine};
use std::{net::SocketAddr, time::Duration};
use stead_incus::{Client, Error, requests, requests::cluster::MemberAction, tls, types::Member};
use tokio::time::{Instant, sleep};

/// Time limit for probing a member; a running one shows its certificate in milliseconds.
const PROBE: Duration = Duration::from_secs(2);
/// State of a member that was accepted but has not finished joining (`nodes.state` in both engines' schema).
const PENDING: u8 = 1;

/// A member as the cluster file knows it.
#[derive(Debug, Clone, Copy)]
pub struct Who<'a> {
    /// The node's name, which is the member's unless somebody renamed it in the engine.
    pub name: &'a str,
    /// Where its engine answers.
    pub address: Option<SocketAddr>,
}

impl Who<'_> {
    /// Finds it: by its address, which an engine cannot change by itself, else by its name.
    fn among(self, members: Vec<Member>) -> Option<Member> {
        let at = self.address.and_then(|address| members.iter().position(|m| is_at(m, address)));
        // A member of its name that answers elsewhere is another one, which somebody renamed.
        let is_named =
            |m: &Member| m.server_name == self.name && (self.address.is_none() || address_of(m).is_none());
        let at = at.or_else(|| members.iter().position(is_named))?;
        members.into_iter().nth(at)
    }
}

/// Whether a member answers at this address.
pub fn is_at(member: &Member, address: SocketAddr) -> bool {
    address_of(member) == Some(address)
}

/// Where a member answers; `None` when the engine names a host instead of an address.
fn address_of(member: &Member) -> Option<SocketAddr> {
    member.url.trim_start_matches("https://").parse().ok()
}

/// Removes the remains of an interrupted join from the cluster: a pending member, which the API does not show, or an
/// empty member that does not answer as one.
///
/// # Errors
/// The member exists and is alive or not empty.
pub async fn make_way(client: &Client, who: Who<'_>) -> Result<(), IncusError> {
    unpend(client, who.name).await?;
    let Some(member) = who.among(members(client).await?) else { return Ok(()) };
    let name = member.server_name.as_str();
    if let Some(sign) = sign_of_life(client, &member).await? {
        return Err(IncusError::AlreadyMember { member: name.to_owned(), sign });
    }
    if let Some(holds) = holds(client, name).await? {
        return Err(IncusError::StaleMember { member: name.to_owned(), holds });
    }
    remove_now(client, name, true).await
}

/// Evacuates (unless forced) and removes a member. Succeeds if it does not exist.
///
/// # Errors
/// The engine's.
pub async fn remove(client: &Client, who: Who<'_>, force: bool) -> Result<(), IncusError> {
    unpend(client, who.name).await?;
    let Some(member) = who.among(members(client).await?) else { return Ok(()) };
    let name = member.server_name.as_str();
    if !force && member.status != "Evacuated" {
        client.set_member_state(name, MemberAction::Evacuate).await.map_err(engine("evacuate the member"))?;
    }
    remove_now(client, name, force).await
}

/// Restores an evacuated member. Does nothing if it does not exist or is not evacuated.
///
/// # Errors
/// The engine's.
pub async fn restore(client: &Client, who: Who<'_>) -> Result<(), IncusError> {
    let found = who.among(members(client).await?);
    if let Some(member) = found.filter(|m| m.status == "Evacuated") {
        let name = member.server_name.as_str();
        client.set_member_state(name, MemberAction::Restore).await.map_err(engine("restore the member"))?;
    }
    Ok(())
}

async fn remove_now(client: &Client, name: &str, force: bool) -> Result<(), IncusError> {
    match client.remove_member(name, force).await {
        Err(e) if !e.is_not_found() => Err(engine("remove the member")(e)),
        _ => Ok(()),
    }
}

/// Turns a pending member into an ordinary one and removes it. The API neither shows nor removes pending members, and
/// refuses their names and addresses to others.
async fn unpend(client: &Client, name: &str) -> Result<(), IncusError> {
    let failed = || engine("look for a half-joined member");
    let question = requests::server::sql(
        "global",
        &format!("SELECT name FROM nodes WHERE state={PENDING} AND name='{}'", quoted(name)),
    );
    let answer = unlocked(|| client.fetch::<serde_json::Value>(&question)).await.map_err(failed())?;
    let rows = answer.pointer("/Results/0/rows").and_then(|r| r.as_array()).map_or(0, Vec::len);
    if rows == 0 {
        return Ok(());
    }
    let change = requests::server::sql(
        "global",
        &format!("UPDATE nodes SET state=0 WHERE state={PENDING} AND name='{}'", quoted(name)),
    );
    unlocked(|| client.fetch::<serde_json::Value>(&change)).await.map_err(failed())?;
    remove_now(client, name, true).await
}

/// Retries while another writer holds the database, for which the engine itself does not wait.
async fn unlocked<T, A: Future<Output = Result<T, Error>>>(ask: impl Fn() -> A) -> Result<T, Error> {
    const TRIES: u32 = 20;
    const PAUSE: Duration = Duration::from_millis(250);
    let mut tries = 1;
    loop {
        match ask().await {
            Err(e) if tries < TRIES && e.to_string().contains("database is locked") => {
                tries += 1;
                sleep(PAUSE).await;
            }
            other => return other,
        }
    }
}

async fn members(client: &Client) -> Result<Vec<Member>, IncusError> {
    unlocked(|| client.members()).await.map_err(engine("list members"))
}

/// Escapes text for an SQL string literal.
fn quoted(text: &str) -> String {
    text.replace('\'', "''")
}

/// Evidence that a member is alive, if any: it shows the cluster's certificate, or it cannot be asked and the cluster
/// considers it online. A broken connection is retried: a daemon that was just killed accepts some and answers none.
///
/// # Errors
/// This member does not answer.
async fn sign_of_life(client: &Client, member: &Member) -> Result<Option<String>, IncusError> {
    let address = member.url.trim_start_matches("https://");
    let server = unlocked(|| client.server()).await.map_err(engine("look at this member"))?.value;
    let begun = Instant::now();
    loop {
        match tls::fetch_certificate(address, PROBE).await {
            Ok(der) => {
                let of_cluster = tls::fingerprint(&der) == server.environment.certificate_fingerprint;
                return Ok(of_cluster.then(|| "answers with the cluster's certificate".to_owned()));
            }
            Err(Error::Connect { source, .. }) if source.kind() == std::io::ErrorKind::ConnectionRefused => {
                return Ok(None);
            }
            Err(_) if begun.elapsed() < PROBE => sleep(PROBE / 40).await,
            Err(_) if member.status == "Offline" => return Ok(None),
            Err(e) => return Ok(Some(format!("counts as online ({})", chain(&e)))),
        }
    }
}

/// Description of the member's contents, if any.
async fn holds(client: &Client, name: &str) -> Result<Option<String>, IncusError> {
    let instances = client.instances().await.map_err(engine("list instances"))?;
    Ok(instances.into_iter().find(|i| i.location == name).map(|i| format!("instance {}", i.name)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_renamed_member_is_found_by_its_address() {
        let member = |name: &str, url: &str| Member {
            server_name: name.into(),
            url: url.into(),
            ..serde_json::from_str(r#"{"server_name":"","status":"Online"}"#).unwrap()
        };
        let all = || {
            vec![
                member("node1", "https://10.0.0.2:8443"),
                // Their names were exchanged.
                member("node3", "https://10.0.0.3:8443"),
                member("node2", "https://[fd00::4]:8443"),
                member("other", "https://somewhere:8443"),
            ]
        };
        let found = |name: &str, address: Option<&str>| {
            let who = Who { name, address: address.map(|a| a.parse().unwrap()) };
            who.among(all()).map(|m| m.server_name)
        };
        assert_eq!(found("node2", Some("10.0.0.3:8443")).as_deref(), Some("node3"));
        assert_eq!(found("node3", Some("[fd00::4]:8443")).as_deref(), Some("node2"));
        assert_eq!(found("node1", None).as_deref(), Some("node1"));
        assert_eq!(found("other", Some("10.0.0.9:8443")).as_deref(), Some("other"));
        assert_eq!(found("gone", Some("10.0.0.9:8443")), None);
        // Somebody gave another member this name.
        assert_eq!(found("node1", Some("10.0.0.9:8443")), None);
    }

    #[test]
    fn quotes_do_not_end_the_literal() {
        assert_eq!(quoted("a'b"), "a''b");
    }
}
