//! Runs the commands of operators.

use serde_json::Value;

use super::{Shop, command};

/// The output and the exit code of a command.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Ran {
    /// Checks the exit code and returns standard output as JSON.
    #[track_caller]
    pub(crate) fn json(&self, code: i32) -> Value {
        assert_eq!(self.code, Some(code), "{self:?}");
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// Checks the exit code and returns standard output.
    #[track_caller]
    pub(crate) fn text(self, code: i32) -> String {
        assert_eq!(self.code, Some(code), "{self:?}");
        self.out
    }

    /// Checks the exit code and returns standard error.
    #[track_caller]
    pub(crate) fn error(self, code: i32) -> String {
        assert_eq!(self.code, Some(code), "{self:?}");
        self.err
    }
}

impl Shop {
    /// Runs an operator command to its end.
    pub(crate) async fn operate(&self, arguments: &[&str]) -> Ran {
        let mut command = command(arguments[0], &self.environment);
        command.args(&arguments[1..]);
        let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Ran { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
    }

    /// The recorded interventions: action, detail and actor.
    pub(crate) async fn interventions(&self) -> Vec<(String, String, String)> {
        sqlx::query_as("select action, detail, actor from interventions order by id")
            .fetch_all(&self.database)
            .await
            .unwrap()
    }
}
