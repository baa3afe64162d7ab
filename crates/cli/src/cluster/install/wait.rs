//! What an installation waits for, and what it says meanwhile.

use std::time::Instant;

use anyhow::bail;
use serde_json::Value;

use super::{Group, Work, place, title};
use crate::cluster::objects::Resource;
use crate::cluster::progress::{LOOK, took};
use crate::cluster::rollout::progress;
use crate::cluster::value::{holds, list, text};
use crate::output::Mark;

/// How something stands that is waited for.
enum Look {
    /// It is as it should be; what to say.
    Done(String),
    /// Not yet: what is waited for, and details.
    Waiting(String, Vec<String>),
}

impl Work<'_> {
    pub(super) async fn wait_definitions(&mut self) -> anyhow::Result<()> {
        let wanted: Vec<Value> = self.bundle.group(Group::Definitions).cloned().collect();
        let mut looking = self.deadline_passed("custom resource definitions");
        loop {
            let mut missing = Vec::new();
            for object in &wanted {
                let (namespace, name) = place(object);
                let found = self.objects.get(&Resource::of(object), &namespace, &name).await?;
                if !found.is_some_and(|found| holds(&found, "Established")) {
                    missing.push(title(object));
                }
            }
            if missing.is_empty() {
                return Ok(());
            }
            self.again(&mut looking, Look::Waiting("the server to take up new kinds".to_owned(), missing)).await?;
        }
    }

    pub(super) async fn wait_rollout(&mut self, group: Group) -> anyhow::Result<()> {
        let wanted: Vec<Value> = self.bundle.group(group).cloned().collect();
        let began = Instant::now();
        let mut looking = self.deadline_passed(group.title());
        for object in &wanted {
            loop {
                let look = self.rollout(object, group).await?;
                if let Look::Done(text) = &look {
                    let text = format!("{}: {text} ({})", group.title(), took(began));
                    self.teller.fact(Mark::Good, &text);
                    break;
                }
                self.again(&mut looking, look).await?;
            }
        }
        Ok(())
    }

    async fn rollout(&self, wanted: &Value, group: Group) -> anyhow::Result<Look> {
        let (namespace, name) = place(wanted);
        let Some(found) = self.objects.get(&Resource::of(wanted), &namespace, &name).await? else {
            bail!("{} has been deleted by somebody else while it was waited for", title(wanted));
        };
        let pods = self.objects.list(&Resource::new("v1", "Pod"), &namespace, "").await?;
        let progress = progress(&found, &pods);
        if progress.done && found["status"]["desiredNumberScheduled"] == 0 {
            return Ok(Look::Done("no node takes it; look at its nodeSelector and tolerations".to_owned()));
        }
        Ok(if progress.done {
            Look::Done(progress.text)
        } else {
            Look::Waiting(format!("{}: {}", group.title(), progress.text), progress.waiting)
        })
    }

    /// The API server can ask the controller once the leader has written how to trust it.
    pub(super) async fn wait_webhook(&mut self) -> anyhow::Result<()> {
        let wanted: Vec<Value> = self.bundle.group(Group::Webhook).cloned().collect();
        let mut looking = self.deadline_passed("webhook");
        for object in &wanted {
            loop {
                let (namespace, name) = place(object);
                let found = self.objects.get(&Resource::of(object), &namespace, &name).await?.unwrap_or_default();
                let trusted = |webhook: &Value| !text(&webhook["clientConfig"]["caBundle"]).is_empty();
                if list(&found["webhooks"]).all(trusted) && list(&found["webhooks"]).next().is_some() {
                    self.teller.fact(Mark::Good, "webhook: its certificate authority is written");
                    break;
                }
                let what = "webhook: the controller to write its certificate authority into it".to_owned();
                self.again(&mut looking, Look::Waiting(what, Vec::new())).await?;
            }
        }
        Ok(())
    }

    /// What is said when the time is over.
    fn deadline_passed(&self, what: &str) -> String {
        format!(
            "{what} not ready within {:?}; what was applied stays, and the same command goes on from there. Look with \
             `stillmesh check -i {ns}` and `kubectl -n {ns} describe pods`",
            self.args.timeout,
            ns = self.done.namespace
        )
    }

    /// Says what is waited for, and waits a moment. Errors: the time is over.
    async fn again(&mut self, passed: &mut String, look: Look) -> anyhow::Result<()> {
        if let Look::Waiting(what, details) = look {
            self.teller.waiting(&what, &details);
            if Instant::now() >= self.deadline {
                let reasons: String = details.iter().map(|detail| format!("\n  {detail}")).collect();
                bail!("{passed}{reasons}");
            }
        }
        tokio::time::sleep(LOOK).await;
        Ok(())
    }
}
