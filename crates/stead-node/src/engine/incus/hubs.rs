//! Event hubs: the members that pass events on in a cluster too large for each member to listen to every other.
//!
//! Both engines have the role `event-hub`; with two such members or more, the others listen to them alone. Otherwise a join
//! opens a connection from every member to the new one and back, so that it costs more with each member. A hub that does
//! not answer is made up for by the others; with fewer than two, the engine goes back to connections between all.

use super::{IncusError, LEADER, engine};
use stead_incus::{Client, Tagged, requests, types::Member};

/// From so many members on there are hubs. With fewer, hubs would save no connection.
const MEMBERS: usize = 5;
/// So many: one may be restarted, and another fail, while two remain.
const HUBS: usize = 3;
/// The role.
const HUB: &str = "event-hub";
/// Role of a voter of the cluster's database: without them there is no cluster either.
const VOTER: &str = "database";

/// Gives the role to members of the cluster if it has grown so large that it should have hubs, and has none. Roles that
/// somebody gave are left alone.
///
/// # Errors
/// The engine's.
pub async fn appoint(client: &Client) -> Result<(), IncusError> {
    let members = client.members().await.map_err(engine("list members"))?;
    for name in chosen(&members) {
        let Tagged { value, etag } = client.member(name).await.map_err(engine("look at a member"))?;
        let mut put = value.writable();
        put.roles.retain(|r| r != LEADER);
        put.roles.push(HUB.to_owned());
        let update = requests::cluster::update_member(name, &put, etag);
        client.send(&update).await.map_err(engine("make a member an event hub"))?;
    }
    Ok(())
}

/// The members to appoint.
fn chosen(members: &[Member]) -> Vec<&str> {
    let has = |m: &Member, role: &str| m.roles.iter().any(|r| r == role);
    if members.len() < MEMBERS || members.iter().any(|m| has(m, HUB)) {
        return Vec::new();
    }
    members.iter().filter(|m| has(m, VOTER)).map(|m| m.server_name.as_str()).take(HUBS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn member(name: &str, roles: &[&str]) -> Member {
        serde_json::from_value(json!({ "server_name": name, "status": "Online", "roles": roles })).unwrap()
    }

    #[test]
    fn voters_of_a_large_cluster_without_hubs_are_chosen() {
        let mut members = vec![
            member("a", &["database-leader", "database"]),
            member("b", &["database-standby"]),
            member("c", &["database"]),
            member("d", &["database"]),
        ];
        assert!(chosen(&members).is_empty(), "a small cluster needs none");
        members.push(member("e", &[]));
        assert_eq!(chosen(&members), ["a", "c", "d"]);
        members[1].roles.push(HUB.to_owned());
        assert!(chosen(&members).is_empty(), "somebody chose already");
    }
}
