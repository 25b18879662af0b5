//! Features that only some servers have, with their names in `api_extensions`.
//!
//! A [`Request`](crate::Request) carries the features it needs. The client asks the server once for its extensions and
//! refuses a request when one is missing: an older server would ignore the keys it does not know and do something else.

use crate::Dialect;
use std::fmt;

macro_rules! features {
    ($($(#[doc = $doc:literal])+ $name:ident: $text:literal, $incus:expr, $lxd:expr;)+) => {
        /// A feature that only servers with a certain API extension have.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Feature {
            $($(#[doc = $doc])+ $name,)+
        }
        impl Feature {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name),+];

            /// Its name in `api_extensions`; none if no version of this engine has it.
            pub fn extension(self, dialect: Dialect) -> Option<&'static str> {
                match (self, dialect) {
                    $((Self::$name, Dialect::Incus) => $incus, (Self::$name, Dialect::Lxd) => $lxd,)+
                }
            }
        }
        impl fmt::Display for Feature {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(match self { $(Self::$name => $text,)+ })
            }
        }
    };
}

features! {
    /// Groups of cluster members.
    ClusterGroups: "cluster groups", Some("clustering_groups"), Some("clustering_groups");
    /// Load, memory and pools of a member.
    MemberState: "the state of a member", Some("cluster_member_state"), Some("cluster_member_state");
    /// Evacuating a member in a way other than configured.
    EvacuationMode: "a mode of evacuation", Some("clustering_evacuation_mode"), Some("clustering_evacuation_mode");
    /// Evacuating a member by live migration.
    EvacuationLive: "evacuation by live migration", Some("clustering_evacuation_live"), Some("clustering_evacuation_live");
    /// Moving a running container by repeated copies of what has changed; it is stopped only for the last copy. Incus
    /// after 7.1; LXD lacks it.
    RefreshMigration: "refresh migration", Some("instance_refresh_migration"), None;
    /// Recreating an instance's root disk.
    Rebuild: "rebuilding an instance", Some("instances_rebuild"), Some("instances_rebuild");
    /// Moving an instance to another pool.
    PoolMove: "moving between pools", Some("instance_pool_move"), Some("instance_pool_move");
    /// Moving an instance to another project.
    ProjectMove: "moving between projects", Some("instance_project_move"), Some("instance_project_move");
    /// Changing settings, devices or profiles during a move.
    MoveConfig: "changing settings during a move", Some("instance_move_config"), Some("instance_move_config");
    /// Copying although files vanish during the copy.
    InconsistentCopy: "an inconsistent copy", Some("instance_allow_inconsistent_copy"), Some("instance_allow_inconsistent_copy");
    /// Moving although files vanish during the move.
    InconsistentMove: "an inconsistent move", Some("cluster_migration_inconsistent_copy"), Some("cluster_migration_inconsistent_copy");
    /// Updating an earlier copy with what has changed since.
    RefreshCopy: "refreshing a copy", Some("container_incremental_copy"), Some("container_incremental_copy");
    /// Copying without snapshots.
    InstanceOnly: "a copy without snapshots", Some("container_only_migration"), Some("container_only_migration");
    /// Copying between projects.
    ProjectCopy: "copying between projects", Some("container_copy_project"), Some("container_copy_project");
    /// The source of a copy connects to the target, or the client relays between them.
    PushMigration: "migration by push or relay", Some("container_push"), Some("container_push");
    /// The source of a copy connects to the target.
    PushTarget: "migration by push", Some("container_push_target"), Some("container_push_target");
    /// Starting an instance in the operation that makes it.
    CreateStart: "creating and starting an instance in one operation", Some("instance_create_start"), Some("instance_create_start");
    /// Snapshots that expire.
    SnapshotExpiry: "a snapshot's expiry", Some("snapshot_expiry_creation"), Some("snapshot_expiry_creation");
    /// A Starlark program in the server that chooses the member of an instance. LXD had it from 5.13 to 5.21.
    PlacementScriptlet: "a placement scriptlet", Some("instances_placement_scriptlet"), Some("instances_placement_scriptlet");
    /// Instances of all projects in one list.
    InstancesAllProjects: "instances of all projects", Some("instance_all_projects"), Some("instance_all_projects");
    /// Images of all projects in one list.
    ImagesAllProjects: "images of all projects", Some("images_all_projects"), Some("images_all_projects");
    /// Profiles of all projects in one list.
    ProfilesAllProjects: "profiles of all projects", Some("profiles_all_projects"), Some("profiles_all_projects");
    /// Networks of all projects in one list.
    NetworksAllProjects: "networks of all projects", Some("networks_all_projects"), Some("networks_all_projects");
    /// Volumes of all projects in one list.
    VolumesAllProjects: "volumes of all projects", Some("storage_volumes_all_projects"), Some("storage_volumes_all_projects");
    /// Operations of all projects in one list.
    OperationsAllProjects: "operations of all projects", Some("operations_get_query_all_projects"), Some("operations_get_query_all_projects");
    /// Filters of lists of instances and images.
    Filter: "filtering", Some("api_filtering"), Some("api_filtering");
    /// User, group and directory of a command.
    ExecUser: "user, group and directory of a command", Some("container_exec_user_group_cwd"), Some("container_exec_user_group_cwd");
    /// Directories in instances.
    Directories: "directories in an instance", Some("directory_manipulation"), Some("directory_manipulation");
    /// Appending to files in instances.
    FileAppend: "appending to a file", Some("file_append"), Some("file_append");
    /// Symbolic links in instances.
    FileSymlinks: "symbolic links in an instance", Some("file_symlinks"), Some("file_symlinks");
    /// Deleting files in instances.
    FileDelete: "deleting a file", Some("file_delete"), Some("file_delete");
    /// The console's log.
    ConsoleLog: "the console's log", Some("console"), Some("console");
    /// Asking an image's source for a newer version at once.
    ImageRefresh: "refreshing an image", Some("image_force_refresh"), Some("image_force_refresh");
    /// Aliases in the request that creates an image.
    ImageAliases: "aliases of a new image", Some("image_create_aliases"), Some("image_create_aliases");
    /// Hardware of a member: processors, memory.
    Resources: "resources of a member", Some("resources_v2"), Some("resources_v2");
    /// Addresses and counters of a network.
    NetworkState: "the state of a network", Some("network_state"), Some("network_state");
    /// Leases of a network.
    NetworkLeases: "leases of a network", Some("network_leases"), Some("network_leases");
    /// Used space of a volume.
    VolumeState: "the state of a volume", Some("storage_volume_state"), Some("storage_volume_state");
    /// Usage of a project against its limits.
    ProjectUsage: "usage of a project", Some("project_usage"), Some("project_usage");
    /// Measurements in the OpenMetrics format.
    Metrics: "metrics", Some("metrics"), Some("metrics");
    /// Warnings.
    Warnings: "warnings", Some("warnings"), Some("warnings");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_differ_where_the_engines_do() {
        assert_eq!(Feature::RefreshMigration.extension(Dialect::Incus), Some("instance_refresh_migration"));
        assert_eq!(Feature::RefreshMigration.extension(Dialect::Lxd), None);
        assert!(Feature::ALL.iter().all(|f| f.extension(Dialect::Incus).is_some()));
    }
}
