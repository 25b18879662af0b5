//! Commands in instances.

use super::instances::path;
use crate::{Feature, Request, types::Config};
use serde_json::json;

/// A command to run in an instance.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Command {
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Environment variables, in addition to the instance's.
    pub environment: Config,
    /// User id; 0 is root.
    pub user: u32,
    /// Group id.
    pub group: u32,
    /// Working directory; none for the user's home.
    pub directory: Option<String>,
    /// Columns and rows of the terminal to run it in; none to run it with pipes.
    pub terminal: Option<(u16, u16)>,
}

impl Command {
    /// A command with pipes, as root.
    pub fn new<S: Into<String>>(argv: impl IntoIterator<Item = S>) -> Self {
        Self { argv: argv.into_iter().map(Into::into).collect(), ..Self::default() }
    }
}

/// Starts a command. The server runs it once its websockets are connected.
pub fn begin(project: &str, name: &str, command: &Command) -> Request {
    let (width, height) = command.terminal.unwrap_or_default();
    let request = Request::post(
        path(name, "/exec"),
        &json!({
            "command": command.argv,
            "wait-for-websocket": true,
            "interactive": command.terminal.is_some(),
            "environment": command.environment,
            "width": width,
            "height": height,
            "user": command.user,
            "group": command.group,
            "cwd": command.directory.as_deref().unwrap_or_default(),
        }),
    );
    let as_somebody = command.user != 0 || command.group != 0 || command.directory.is_some();
    request.query("project", project).needs_if(as_somebody, Feature::ExecUser)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::requests::shown;

    #[test]
    fn requests() {
        let c = Command { terminal: Some((80, 25)), ..Command::new(["ls", "-l"]) };
        assert_eq!(
            shown(&begin("default", "c1", &c)),
            r#"POST /1.0/instances/c1/exec?project=default {"command":["ls","-l"],"wait-for-websocket":true,"interactive":true,"environment":{},"width":80,"height":25,"user":0,"group":0,"cwd":""}"#
        );
        assert_eq!(
            begin("default", "c1", &Command { user: 1000, ..Command::new(["id"]) }).needed(),
            [Feature::ExecUser]
        );
    }
}
