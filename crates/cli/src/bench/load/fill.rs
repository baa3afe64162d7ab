//! Objects that exist on paper only, to measure what a large configuration costs.

use clap::Args;

/// Puts pods that exist on paper only into the cluster directory, to measure what a large configuration costs.
#[derive(Debug, Args)]
pub(crate) struct Fill {
    /// How many.
    #[arg(long)]
    workloads: u32,
    /// The cluster directory.
    #[arg(long, env = "OBJECTS_DIR")]
    into: std::path::PathBuf,
}

impl Fill {
    /// Writes them, a file per thousand, and one service per ten.
    pub(super) fn run(self) -> anyhow::Result<()> {
        let numbers: Vec<u32> = (0..self.workloads).collect();
        for (file, chunk) in numbers.chunks(1000).enumerate() {
            let mut items = Vec::new();
            for number in chunk {
                items.push(paper_pod(*number));
                if number % 10 == 0 {
                    items.push(paper_service(*number));
                }
            }
            let list = serde_json::json!({ "apiVersion": "v1", "kind": "List", "items": items });
            let part = self.into.join(format!(".bench-{file}.part"));
            std::fs::write(&part, list.to_string())?;
            std::fs::rename(&part, self.into.join(format!("bench-{file}.json")))?;
        }
        Ok(())
    }
}

fn paper_pod(number: u32) -> serde_json::Value {
    let (high, middle, low) = (number / 62_500 + 64, number / 250 % 250, number % 250 + 1);
    let ip = format!("10.{high}.{middle}.{low}");
    serde_json::json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": format!("paper-{number}"), "namespace": "paper", "uid": format!("paper-{number}"),
            "labels": { "app": format!("paper-{}", number / 10) },
            "annotations": { "ambient.istio.io/redirection": "enabled" },
        },
        "spec": {
            "nodeName": "paper-node", "serviceAccountName": format!("paper-{}", number / 10),
            "containers": [{ "name": "main", "command": ["true"] }],
        },
        "status": {
            "phase": "Running", "podIP": ip, "podIPs": [{ "ip": ip }],
            "conditions": [{ "type": "Ready", "status": "True" }],
        },
    })
}

fn paper_service(number: u32) -> serde_json::Value {
    let number = number / 10;
    let ip = format!("10.97.{}.{}", number / 250, number % 250 + 1);
    serde_json::json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": { "name": format!("paper-{number}"), "namespace": "paper" },
        "spec": {
            "clusterIP": ip, "clusterIPs": [ip], "selector": { "app": format!("paper-{number}") },
            "ports": [{ "name": "http", "port": 80, "targetPort": 8080 }],
        },
    })
}
