//! The bundled shop: small real HTTP services for `stillmesh demo` and for trying things out by hand.
//!
//! page → details, reviews → ratings; a visitor that asks for the page all the time and counts errors; a ticker whose
//! one long connection must never break. They know nothing of the mesh: names come from DNS, bytes go over TCP.
//! State: each process holds its keep-alive connections and its counters, nothing else.

mod client;
mod fetch;
mod serve;
mod ticker;
mod visitor;

use std::net::{Ipv6Addr, SocketAddr};
use std::time::Duration;

use clap::{Args, Subcommand};
use stillmesh_runtime::sys::socket;

/// One program of the shop.
#[derive(Debug, Args)]
pub struct Shop {
    #[command(subcommand)]
    part: Part,
}

#[derive(Debug, Subcommand)]
enum Part {
    /// Serves the product page, made of what details and reviews answer.
    Page(Listen),
    /// Serves a book's details.
    Details(Listen),
    /// Serves reviews; editions v2 and v3 ask ratings.
    Reviews {
        #[command(flatten)]
        listen: Listen,
        /// Which edition of reviews this is.
        #[arg(long, default_value = "v1")]
        edition: String,
        /// Answers one of so many requests with 503, as a failing service does; 0: none.
        #[arg(long, default_value_t = 0)]
        failing: u64,
    },
    /// Serves a book's ratings.
    Ratings(Listen),
    /// Asks for a URL at a steady rate over keep-alive connections and prints counters as JSON lines.
    Visitor(visitor::Visitor),
    /// Asks once and prints the answer.
    Fetch(fetch::Fetch),
    /// Sends one numbered line every 100 ms on each connection.
    Ticker(Listen),
    /// Holds one connection to a ticker, opens the next only after a clean end, and prints counters as JSON lines.
    Watcher(ticker::Watcher),
}

/// Where a part listens and how long its own upstream connections may live.
#[derive(Clone, Debug, Args)]
struct Listen {
    /// Port to listen on.
    #[arg(long, default_value_t = 9080)]
    port: u16,
    /// Age in seconds at which a keep-alive connection is replaced by a new one (a client's usual hygiene).
    #[arg(long, default_value_t = 5)]
    max_age: u64,
}

impl Listen {
    fn max_age(&self) -> Duration {
        Duration::from_secs(self.max_age)
    }

    /// Both families where the machine has IPv6, else IPv4.
    fn bind(&self) -> anyhow::Result<tokio::net::TcpListener> {
        Ok(socket::listen(SocketAddr::from((Ipv6Addr::UNSPECIFIED, self.port)))?)
    }
}

impl Shop {
    /// Runs the part until SIGTERM.
    pub async fn run(self) -> anyhow::Result<()> {
        match self.part {
            Part::Page(listen) => serve::page(listen).await,
            Part::Details(listen) => serve::details(listen).await,
            Part::Reviews { listen, edition, failing } => serve::reviews(listen, edition, failing).await,
            Part::Ratings(listen) => serve::ratings(listen).await,
            Part::Visitor(visitor) => visitor.run().await,
            Part::Fetch(fetch) => fetch.run().await,
            Part::Ticker(listen) => ticker::serve(listen).await,
            Part::Watcher(watcher) => watcher.run().await,
        }
    }
}

/// Resolves when the process is asked to stop.
async fn stop_asked() {
    use tokio::signal::unix::{SignalKind, signal};
    let Ok(mut terminate) = signal(SignalKind::terminate()) else { return };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = tokio::signal::ctrl_c() => {}
    }
}
