//! The cluster and its members.

use crate::{
    Dialect, ETag, Feature, Request,
    request::encode,
    types::{ClusterGroupPut, MemberConfigKey, MemberPut},
};
use serde_json::{Map, Value, json};

/// Whether the server is clustered, and the settings a joining member must give.
pub fn get() -> Request {
    Request::get("/1.0/cluster")
}
/// Makes this server the first member of a new cluster.
pub fn bootstrap(server_name: &str) -> Request {
    Request::put_untagged("/1.0/cluster", &json!({ "server_name": server_name, "enabled": true }))
}

/// Parameters of a server that joins a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Join<'a> {
    /// Name as a member; must be the name in the token.
    pub server_name: &'a str,
    /// `address:port` of the joining server.
    pub server_address: &'a str,
    /// `address:port` of a member.
    pub cluster_address: &'a str,
    /// The cluster's certificate, PEM.
    pub cluster_certificate: &'a str,
    /// The token, as the engine encoded it.
    pub token: &'a str,
    /// Settings of pools and networks for this member.
    pub member_config: &'a [MemberConfigKey],
}

/// Joins a cluster.
pub fn join(dialect: Dialect, join: &Join<'_>) -> Request {
    let mut body = Map::new();
    body.insert("server_name".into(), join.server_name.into());
    body.insert("enabled".into(), true.into());
    body.insert("member_config".into(), json!(join.member_config));
    body.insert("cluster_address".into(), join.cluster_address.into());
    body.insert("cluster_certificate".into(), join.cluster_certificate.into());
    body.insert("server_address".into(), join.server_address.into());
    body.insert(dialect.join_token_field().into(), join.token.into());
    Request::put_untagged("/1.0/cluster", &Value::Object(body))
}
/// All members with all their fields.
pub fn members() -> Request {
    Request::get("/1.0/cluster/members?recursion=1")
}
/// One member.
pub fn member(name: &str) -> Request {
    Request::get(member_path(name))
}
/// Replaces a member's settings, roles and groups; `etag` from [`member`].
pub fn update_member(name: &str, member: &MemberPut, etag: ETag) -> Request {
    Request::put(member_path(name), member, etag)
}
/// Renames a member.
pub fn rename_member(name: &str, new_name: &str) -> Request {
    Request::post(member_path(name), &json!({ "server_name": new_name }))
}
/// Load, memory and pools of a member.
pub fn member_state(name: &str) -> Request {
    Request::get(format!("{}/state", member_path(name))).needs(Feature::MemberState)
}
/// Requests a token with which the member `name` can join.
pub fn join_token(name: &str) -> Request {
    Request::post("/1.0/cluster/members", &json!({ "server_name": name }))
}
/// Evacuates a member or restores it.
pub fn set_member_state(name: &str, action: MemberAction) -> Request {
    let body = match action {
        // Without a mode, the server only stops an instance whose NIC is on a bridge of the member, and the member cannot
        // be removed. A server that does not know the key (clustering_evacuation_mode) ignores it.
        MemberAction::Evacuate => json!({ "action": "evacuate", "mode": "migrate" }),
        MemberAction::EvacuateAs(Some(mode)) => json!({ "action": "evacuate", "mode": mode.as_str() }),
        MemberAction::EvacuateAs(None) => json!({ "action": "evacuate" }),
        MemberAction::Restore => json!({ "action": "restore" }),
    };
    let mode = match action {
        MemberAction::EvacuateAs(mode) => mode,
        MemberAction::Evacuate | MemberAction::Restore => None,
    };
    Request::post(format!("{}/state", member_path(name)), &body)
        .needs_if(mode.is_some(), Feature::EvacuationMode)
        .needs_if(mode == Some(EvacuationMode::LiveMigrate), Feature::EvacuationLive)
        .needs_if(mode == Some(EvacuationMode::RefreshMigrate), Feature::RefreshMigration)
}

/// Action of [`set_member_state`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemberAction {
    /// Move the instances away, whatever `cluster.evacuate` says: containers are stopped, moved and started.
    Evacuate,
    /// Evacuate in this mode; none for the configured one (`cluster.evacuate`).
    EvacuateAs(Option<EvacuationMode>),
    /// Move the instances back.
    Restore,
}

/// What the server does with the instances of an evacuated member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EvacuationMode {
    /// Stop them.
    Stop,
    /// Stop, move and start them.
    Migrate,
    /// Move them while they run.
    LiveMigrate,
    /// Move them by repeated copies and stop them only for the last copy.
    RefreshMigrate,
}

impl EvacuationMode {
    fn as_str(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Migrate => "migrate",
            Self::LiveMigrate => "live-migrate",
            Self::RefreshMigrate => "refresh-migrate",
        }
    }
}

/// All groups of members.
pub fn groups() -> Request {
    Request::get("/1.0/cluster/groups?recursion=1").needs(Feature::ClusterGroups)
}
/// One group.
pub fn group(name: &str) -> Request {
    Request::get(group_path(name)).needs(Feature::ClusterGroups)
}
/// Creates a group.
pub fn create_group(name: &str, group: &ClusterGroupPut) -> Request {
    let mut body = json!(group);
    body["name"] = name.into();
    Request::post("/1.0/cluster/groups", &body).needs(Feature::ClusterGroups)
}
/// Replaces a group's members; `etag` from [`group`] (current servers ignore it). A member stays in its last group.
pub fn update_group(name: &str, group: &ClusterGroupPut, etag: ETag) -> Request {
    Request::put(group_path(name), group, etag).needs(Feature::ClusterGroups)
}
/// Renames a group.
pub fn rename_group(name: &str, new_name: &str) -> Request {
    Request::post(group_path(name), &json!({ "name": new_name })).needs(Feature::ClusterGroups)
}
/// Deletes a group without members.
pub fn delete_group(name: &str) -> Request {
    Request::delete(group_path(name)).needs(Feature::ClusterGroups)
}

/// Removes a member. `force` removes it without its cooperation, together with everything on it.
pub fn remove_member(name: &str, force: bool) -> Request {
    Request::delete(member_path(name)).query_if("force", force.then_some("1"))
}

fn member_path(name: &str) -> String {
    format!("/1.0/cluster/members/{}", encode(name))
}
fn group_path(name: &str) -> String {
    format!("/1.0/cluster/groups/{}", encode(name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::requests::shown;

    #[test]
    fn requests() {
        assert_eq!(shown(&bootstrap("node1")), r#"PUT /1.0/cluster {"server_name":"node1","enabled":true}"#);
        assert_eq!(shown(&join_token("node2")), r#"POST /1.0/cluster/members {"server_name":"node2"}"#);
        assert_eq!(
            shown(&set_member_state("node2", MemberAction::Evacuate)),
            r#"POST /1.0/cluster/members/node2/state {"action":"evacuate","mode":"migrate"}"#
        );
        let r = set_member_state("node2", MemberAction::EvacuateAs(Some(EvacuationMode::LiveMigrate)));
        assert_eq!(
            shown(&r),
            r#"POST /1.0/cluster/members/node2/state {"action":"evacuate","mode":"live-migrate"}"#
        );
        assert_eq!(r.needed(), [Feature::EvacuationMode, Feature::EvacuationLive]);
        let group = ClusterGroupPut { members: vec!["node1".into()], ..ClusterGroupPut::default() };
        assert_eq!(
            shown(&create_group("ssd", &group)),
            r#"POST /1.0/cluster/groups {"description":"","members":["node1"],"name":"ssd"}"#
        );
        assert_eq!(shown(&remove_member("node2", true)), "DELETE /1.0/cluster/members/node2?force=1");
        assert_eq!(shown(&remove_member("a/b", false)), "DELETE /1.0/cluster/members/a%2Fb");
    }

    #[test]
    fn the_token_goes_where_the_dialect_wants_it() {
        let key = MemberConfigKey {
            entity: "storage-pool".into(),
            name: "default".into(),
            key: "source".into(),
            value: "/dev/vdb".into(),
        };
        let j = Join {
            server_name: "node2",
            server_address: "10.0.0.2:8443",
            cluster_address: "10.0.0.1:8443",
            cluster_certificate: "PEM",
            token: "TOKEN",
            member_config: std::slice::from_ref(&key),
        };
        assert_eq!(
            shown(&join(Dialect::Incus, &j)),
            r#"PUT /1.0/cluster {"server_name":"node2","enabled":true,"member_config":[{"entity":"storage-pool","name":"default","key":"source","value":"/dev/vdb"}],"cluster_address":"10.0.0.1:8443","cluster_certificate":"PEM","server_address":"10.0.0.2:8443","cluster_token":"TOKEN"}"#
        );
        assert!(shown(&join(Dialect::Lxd, &j)).ends_with(r#""cluster_password":"TOKEN"}"#));
    }
}
