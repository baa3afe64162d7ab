//! One request: for scripts and init containers that have no other HTTP client at hand.

use std::time::Duration;

use clap::Args;
use hyper::Method;
use stillmesh_runtime::tasks::Tasks;
use tokio::time::sleep;

use super::client::KeepAlive;
use super::stop_asked;

/// Time between two tries.
const PAUSE: Duration = Duration::from_millis(200);

/// How long an answer is waited for that is asked for once.
const ONCE: Duration = Duration::from_secs(60);

/// What to get.
#[derive(Debug, Args)]
pub(super) struct Fetch {
    /// Host and port to ask, for example `page:9080`.
    authority: String,
    /// Path to ask for.
    #[arg(long, default_value = "/")]
    path: String,
    /// How to ask.
    #[arg(long, default_value = "GET")]
    method: Method,
    /// Ask again until there is a good answer.
    #[arg(long)]
    until_it_answers: bool,
}

impl Fetch {
    /// Prints the body. Errors: no whole 200 answer.
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let mut client = KeepAlive::new(&self.authority, Duration::ZERO, Tasks::new("shop"));
        if !self.until_it_answers {
            client = client.patient(ONCE);
        }
        let stop = stop_asked();
        tokio::pin!(stop);
        loop {
            match client.send(&self.method, &self.path).await {
                Ok(body) => {
                    crate::output::line(&String::from_utf8_lossy(&body));
                    return Ok(());
                }
                Err(error) if !self.until_it_answers => return Err(error),
                Err(_) => tokio::select! {
                    () = sleep(PAUSE) => {}
                    () = &mut stop => return Ok(()),
                },
            }
        }
    }
}
