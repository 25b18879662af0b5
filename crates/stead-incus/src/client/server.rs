//! The server itself, projects, profiles, networks, warnings.

use super::Client;
use crate::{
    Error, Scope, Tagged,
    metrics::{self, Sample},
    requests,
    types::{
        Network, NetworkLease, NetworkState, Profile, Project, ProjectState, Resources, Server, Warning,
    },
};

impl Client {
    /// The server's settings, version and extensions, fetched now, with the ETag of the settings. Untrusted clients get
    /// no ETag: see [`Self::server_info`].
    pub async fn server(&self) -> Result<Tagged<Server>, Error> {
        self.fetch_tagged(&requests::server::get()).await
    }
    /// The same of a member of the cluster, fetched now.
    pub async fn server_of(&self, member: &str) -> Result<Server, Error> {
        self.fetch(&requests::server::get_of(member)).await
    }
    /// Hardware resources of the server, or of a member of its cluster.
    pub async fn resources(&self, member: Option<&str>) -> Result<Resources, Error> {
        self.fetch(&requests::server::resources(member)).await
    }
    /// Measurements of the member that answers, or of `member`, and of the instances on it.
    ///
    /// # Errors
    /// As [`Self::send`]; [`Error::Metrics`] when the answer is not OpenMetrics text.
    pub async fn metrics(&self, project: Option<&str>, member: Option<&str>) -> Result<Vec<Sample>, Error> {
        let request = requests::server::metrics(project, member);
        let answer = self.raw(&request).await?;
        metrics::parse(&answer.body).map_err(|source| Error::Metrics { request: request.to_string(), source })
    }

    /// All projects.
    pub async fn projects(&self) -> Result<Vec<Project>, Error> {
        self.list(&requests::projects::list()).await
    }
    /// One project.
    pub async fn project(&self, name: &str) -> Result<Tagged<Project>, Error> {
        self.fetch_tagged(&requests::projects::get(name)).await
    }
    /// Usage of a project against its limits.
    pub async fn project_state(&self, name: &str) -> Result<ProjectState, Error> {
        self.fetch(&requests::projects::state(name)).await
    }
    /// Profiles of a project.
    pub async fn profiles(&self, project: &str) -> Result<Vec<Profile>, Error> {
        self.list(&requests::profiles::list(Scope::Project(project))).await
    }
    /// One profile.
    pub async fn profile(&self, project: &str, name: &str) -> Result<Tagged<Profile>, Error> {
        self.fetch_tagged(&requests::profiles::get(project, name)).await
    }

    /// Networks of a project.
    pub async fn networks(&self, project: &str) -> Result<Vec<Network>, Error> {
        self.list(&requests::networks::list(Scope::Project(project))).await
    }
    /// One network.
    pub async fn network(&self, project: &str, name: &str) -> Result<Tagged<Network>, Error> {
        self.fetch_tagged(&requests::networks::get(project, name)).await
    }
    /// Addresses and traffic of a network, on the member that answers or on `target`.
    pub async fn network_state(
        &self,
        project: &str,
        name: &str,
        target: Option<&str>,
    ) -> Result<NetworkState, Error> {
        self.fetch(&requests::networks::state(project, name, target)).await
    }
    /// Addresses that a network has leased.
    pub async fn network_leases(&self, project: &str, name: &str) -> Result<Vec<NetworkLease>, Error> {
        self.list(&requests::networks::leases(project, name)).await
    }

    /// The server's warnings.
    pub async fn warnings(&self) -> Result<Vec<Warning>, Error> {
        self.list(&requests::warnings::list()).await
    }
}
