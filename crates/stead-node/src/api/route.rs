//! Parses request lines into routes. Pure.

use stead_agent::query;

/// Longest query value accepted: PATH_MAX, since the longest values are paths.
const MAX_VALUE: usize = 4096;

/// The action that a request asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route {
    /// `GET /v1/status`
    Status,
    /// `GET /v1/logs`
    Logs {
        /// The service; `node` for the node's own log.
        service: String,
        /// Only this many last lines.
        tail: Option<u64>,
        /// Whether to follow the log as it grows.
        follow: bool,
    },
    /// `POST /v1/exec`
    Exec,
    /// `GET /v1/files`
    GetFiles {
        /// Absolute path.
        path: String,
    },
    /// `PUT /v1/files`
    PutFiles {
        /// Absolute path of a directory.
        path: String,
    },
    /// `GET /v1/engine`
    Engine,
    /// `POST /v1/engine/join-token`
    JoinToken,
    /// `POST /v1/engine/join`
    Join,
    /// `POST /v1/engine/access`
    Access,
    /// `POST /v1/engine/remove`
    RemoveMember,
    /// `POST /v1/engine/restore`
    RestoreMember,
    /// `GET /v1/engine/instances`
    Instances,
    /// `POST /v1/reboot`
    Reboot,
    /// `POST /v1/shutdown`
    Shutdown,
}

/// A request for something that the API does not have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RouteError {
    /// No such path: 404.
    #[error("no such path in the agent API")]
    NotFound,
    /// The path exists, with other methods: 405.
    #[error("this path only allows {allowed}")]
    Method {
        /// For the `Allow` header.
        allowed: &'static str,
    },
    /// The query is wrong: 400.
    #[error("query parameter {key:?} {why}")]
    Query {
        /// The parameter.
        key: String,
        /// What is wrong with it.
        why: &'static str,
    },
}

/// Parses a request line.
///
/// # Errors
/// [`RouteError`], one per HTTP status.
pub fn route(method: &str, path_and_query: &str) -> Result<Route, RouteError> {
    let (path, query) = path_and_query.split_once('?').unwrap_or((path_and_query, ""));
    let allowed = match path {
        "/v1/status" | "/v1/logs" | "/v1/engine" | "/v1/engine/instances" => "GET",
        "/v1/files" => "GET, PUT",
        "/v1/exec"
        | "/v1/engine/join-token"
        | "/v1/engine/join"
        | "/v1/engine/access"
        | "/v1/engine/remove"
        | "/v1/engine/restore"
        | "/v1/reboot"
        | "/v1/shutdown" => "POST",
        _ => return Err(RouteError::NotFound),
    };
    if !allowed.split(", ").any(|a| a == method) {
        return Err(RouteError::Method { allowed });
    }
    let route = match (path, method) {
        ("/v1/logs", _) => {
            let mut values = parameters(query, &["service", "tail", "follow"])?.into_iter();
            let mut next = || values.next().flatten();
            let (service, tail, follow) = (next(), next(), next());
            Route::Logs {
                service: service.unwrap_or_else(|| "node".to_owned()),
                tail: tail.map(|v| v.parse().map_err(|_| bad("tail", "is not a number"))).transpose()?,
                follow: match follow.as_deref() {
                    None | Some("false") => false,
                    Some("true") => true,
                    Some(_) => return Err(bad("follow", "must be true or false")),
                },
            }
        }
        ("/v1/files", method) => {
            let path = parameters(query, &["path"])?.into_iter().next().flatten();
            let path = path.ok_or_else(|| bad("path", "is missing"))?;
            if !path.starts_with('/') {
                return Err(bad("path", "is not absolute"));
            }
            if path.contains('\0') {
                return Err(bad("path", "contains a NUL"));
            }
            if method == "GET" { Route::GetFiles { path } } else { Route::PutFiles { path } }
        }
        (path, _) => {
            parameters(query, &[])?;
            match path {
                "/v1/status" => Route::Status,
                "/v1/engine" => Route::Engine,
                "/v1/engine/instances" => Route::Instances,
                "/v1/exec" => Route::Exec,
                "/v1/engine/join-token" => Route::JoinToken,
                "/v1/engine/join" => Route::Join,
                "/v1/engine/access" => Route::Access,
                "/v1/engine/remove" => Route::RemoveMember,
                "/v1/engine/restore" => Route::RestoreMember,
                "/v1/reboot" => Route::Reboot,
                "/v1/shutdown" => Route::Shutdown,
                _ => return Err(RouteError::NotFound),
            }
        }
    };
    Ok(route)
}

/// The values of the known keys, in their order. Unknown and repeated keys are errors.
fn parameters(query: &str, known: &[&str]) -> Result<Vec<Option<String>>, RouteError> {
    let mut values = vec![None; known.len()];
    for pair in query.split('&').filter(|p| !p.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let Some(slot) = known.iter().position(|k| *k == key).and_then(|at| values.get_mut(at)) else {
            return Err(bad(key, "is unknown"));
        };
        if value.len() > MAX_VALUE {
            return Err(bad(key, "is too long"));
        }
        let value = query::decode(value).ok_or_else(|| bad(key, "is not percent-encoded UTF-8"))?;
        if slot.replace(value).is_some() {
            return Err(bad(key, "is repeated"));
        }
    }
    Ok(values)
}

fn bad(key: &str, why: &'static str) -> RouteError {
    RouteError::Query { key: key.chars().take(80).collect(), why }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn routes_are_as_documented() {
        for (method, target, want) in [
            ("GET", "/v1/status", Route::Status),
            ("GET", "/v1/logs", Route::Logs { service: "node".into(), tail: None, follow: false }),
            (
                "GET",
                "/v1/logs?service=incusd&tail=10&follow=true",
                Route::Logs { service: "incusd".into(), tail: Some(10), follow: true },
            ),
            ("POST", "/v1/exec", Route::Exec),
            ("GET", "/v1/files?path=/etc/a%20b", Route::GetFiles { path: "/etc/a b".into() }),
            ("PUT", "/v1/files?path=%2F", Route::PutFiles { path: "/".into() }),
            ("GET", "/v1/engine", Route::Engine),
            ("POST", "/v1/engine/join-token", Route::JoinToken),
            ("POST", "/v1/engine/join", Route::Join),
            ("POST", "/v1/engine/access", Route::Access),
            ("POST", "/v1/engine/remove", Route::RemoveMember),
            ("POST", "/v1/engine/restore", Route::RestoreMember),
            ("GET", "/v1/engine/instances", Route::Instances),
            ("POST", "/v1/reboot", Route::Reboot),
            ("POST", "/v1/shutdown", Route::Shutdown),
        ] {
            assert_eq!(route(method, target), Ok(want), "{method} {target}");
        }
    }

    #[test]
    fn wrong_requests_say_what_is_wrong() {
        for (method, target, want) in [
            ("GET", "/", "no such path"),
            ("GET", "/v1/status/", "no such path"),
            ("GET", "/v1/../v1/status", "no such path"),
            ("DELETE", "/v1/status", "this path only allows GET"),
            ("POST", "/v1/files?path=/", "GET, PUT"),
            ("GET", "/v1/status?x=1", "\"x\" is unknown"),
            ("GET", "/v1/files", "\"path\" is missing"),
            ("GET", "/v1/files?path=etc", "not absolute"),
            ("GET", "/v1/files?path=/a%00b", "NUL"),
            ("GET", "/v1/files?path=%ff", "percent-encoded"),
            ("GET", "/v1/files?path=/a&path=/b", "repeated"),
            ("GET", "/v1/logs?tail=-1", "not a number"),
            ("GET", "/v1/logs?follow=yes", "must be true or false"),
        ] {
            let error = route(method, target).unwrap_err().to_string();
            assert!(error.contains(want), "{method} {target}: {error}");
        }
    }

    proptest! {
        #[test]
        fn any_request_line_is_answered(method in "[A-Z]{0,7}", target in "(/v1/(logs|files|exec)?[?].{0,60})|.{0,60}") {
            let _ = route(&method, &target);
        }
        #[test]
        fn paths_survive(path in "/.{0,40}") {
            prop_assume!(!path.contains('\0'));
            let target = format!("/v1/files?path={}", query::encode(&path));
            prop_assert_eq!(route("GET", &target), Ok(Route::GetFiles { path }));
        }
    }
}
