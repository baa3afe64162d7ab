//! Objects of any kind at the API server, as plain JSON.

use kube::api::{ApiResource, DeleteParams, DynamicObject, GroupVersionKind, ListParams, Patch, PatchParams};
use kube::{Api, Client};
use serde_json::Value;

use super::access::within;
use super::value::{name, namespace, text};

/// Who applies, in the objects' managed fields.
pub(crate) const MANAGER: &str = "stillmesh";
/// How many objects are listed at a time.
const PAGE: u32 = 500;

/// A kind, where the server keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Resource {
    api_version: String,
    kind: String,
}

impl Resource {
    /// A kind.
    pub(crate) fn new(api_version: &str, kind: &str) -> Self {
        Self { api_version: api_version.to_owned(), kind: kind.to_owned() }
    }

    /// The kind of an object.
    pub(crate) fn of(object: &Value) -> Self {
        Self::new(text(&object["apiVersion"]), text(&object["kind"]))
    }

    /// Its name.
    pub(crate) fn kind(&self) -> &str {
        &self.kind
    }

    fn api(&self) -> ApiResource {
        let (group, version) = self.api_version.split_once('/').unwrap_or(("", &self.api_version));
        ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, &self.kind))
    }
}

/// What is gone need not be changed or deleted.
fn unless_absent<T>(done: kube::Result<T>) -> kube::Result<()> {
    match done {
        Err(error) if is_absent(&error) => Ok(()),
        other => other.map(drop),
    }
}

/// Whether the server has answered that there is no such object, or no such kind.
pub(crate) fn is_absent(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 404)
}

/// What the server holds.
#[derive(Clone)]
pub(crate) struct Objects {
    client: Client,
}

impl Objects {
    /// Of a cluster.
    pub(crate) fn new(client: Client) -> Self {
        Self { client }
    }

    /// The client.
    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    fn api(&self, resource: &Resource, namespace: &str) -> Api<DynamicObject> {
        if namespace.is_empty() {
            Api::all_with(self.client.clone(), &resource.api())
        } else {
            Api::namespaced_with(self.client.clone(), namespace, &resource.api())
        }
    }

    /// An object; `None` where there is none, or no such kind.
    pub(crate) async fn get(&self, resource: &Resource, namespace: &str, name: &str) -> anyhow::Result<Option<Value>> {
        let doing = format!("reading {} {}", resource.kind, place(namespace, name));
        let found = within(&doing, self.api(resource, namespace).get_opt(name)).await?;
        found.map(|object| value(&object)).transpose()
    }

    /// The objects of a kind, in a namespace or everywhere; none where there is no such kind.
    pub(crate) async fn list(&self, resource: &Resource, namespace: &str, labels: &str) -> anyhow::Result<Vec<Value>> {
        let mut pages = self.pages(resource, namespace, labels);
        let mut all = Vec::new();
        while let Some(page) = pages.next().await? {
            all.extend(page);
        }
        Ok(all)
    }

    /// As [`Objects::list`], some at a time.
    pub(crate) fn pages(&self, resource: &Resource, namespace: &str, labels: &str) -> Pages {
        let params = ListParams::default().labels(labels).limit(PAGE);
        Pages { api: self.api(resource, namespace), resource: resource.clone(), params, is_done: false }
    }

    /// Applies an object. The error is the server's own, so that the caller may tell a conflict.
    pub(crate) async fn apply(&self, object: &Value, dry_run: bool, force: bool) -> Result<Value, kube::Error> {
        let mut params = PatchParams::apply(MANAGER).validation_strict();
        params.dry_run = dry_run;
        params.force = force;
        let api = self.api(&Resource::of(object), namespace(object));
        let applied = api.patch(name(object), &params, &Patch::Apply(object)).await?;
        serde_json::to_value(&applied).map_err(kube::Error::SerdeError)
    }

    /// Deletes an object; one that is gone already is no error.
    pub(crate) async fn delete(&self, object: &Value, dry_run: bool) -> anyhow::Result<()> {
        let resource = Resource::of(object);
        let doing = format!("deleting {}", place(namespace(object), name(object)));
        let mut params = DeleteParams::background();
        params.dry_run = dry_run;
        let api = self.api(&resource, namespace(object));
        let deleted = async { unless_absent(api.delete(name(object), &params).await) };
        within(&format!("{} {doing}", resource.kind), deleted).await
    }

    /// Changes an object by a merge patch; one that is gone is no error.
    pub(crate) async fn merge(&self, object: &Value, patch: &Value) -> anyhow::Result<()> {
        let resource = Resource::of(object);
        let api = self.api(&resource, namespace(object));
        let doing = format!("changing {} {}", resource.kind, place(namespace(object), name(object)));
        let changed =
            async { unless_absent(api.patch(name(object), &PatchParams::default(), &Patch::Merge(patch)).await) };
        within(&doing, changed).await
    }

    /// Changes an object's status by a merge patch; an object that is gone is no error.
    pub(crate) async fn merge_status(&self, object: &Value, patch: &Value) -> anyhow::Result<()> {
        let resource = Resource::of(object);
        let api = self.api(&resource, namespace(object));
        let doing = format!("changing the status of {} {}", resource.kind, place(namespace(object), name(object)));
        let changed = async {
            unless_absent(api.patch_status(name(object), &PatchParams::default(), &Patch::Merge(patch)).await)
        };
        within(&doing, changed).await
    }

    /// The objects of a name, in all namespaces.
    pub(crate) async fn named(&self, resource: &Resource, name: &str) -> anyhow::Result<Vec<Value>> {
        let params = ListParams::default().fields(&format!("metadata.name={name}"));
        let api = self.api(resource, "");
        let list = within(&format!("listing objects of kind {}", resource.kind), api.list(&params)).await?;
        list.items.into_iter().map(|object| typed(object, resource)).collect()
    }
}

/// The objects of a kind, page by page.
pub(crate) struct Pages {
    api: Api<DynamicObject>,
    resource: Resource,
    params: ListParams,
    is_done: bool,
}

impl Pages {
    /// The next of them, at most 500; `None` where all have been.
    pub(crate) async fn next(&mut self) -> anyhow::Result<Option<Vec<Value>>> {
        if self.is_done {
            return Ok(None);
        }
        let listed = async {
            match self.api.list(&self.params).await {
                Err(error) if is_absent(&error) => Ok(None),
                other => other.map(Some),
            }
        };
        let page = within(&format!("listing objects of kind {}", self.resource.kind), listed).await?;
        let Some(page) = page else {
            self.is_done = true;
            return Ok(None);
        };
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => self.params = self.params.clone().continue_token(&token),
            None => self.is_done = true,
        }
        page.items.into_iter().map(|object| typed(object, &self.resource)).collect::<Result<_, _>>().map(Some)
    }
}

/// An object of a list, which does not say of each what it is.
fn typed(mut object: DynamicObject, resource: &Resource) -> anyhow::Result<Value> {
    object.types.get_or_insert_with(|| kube::api::TypeMeta {
        api_version: resource.api_version.clone(),
        kind: resource.kind.clone(),
    });
    value(&object)
}

fn place(namespace: &str, name: &str) -> String {
    if namespace.is_empty() { name.to_owned() } else { format!("{namespace}/{name}") }
}

fn value(object: &DynamicObject) -> anyhow::Result<Value> {
    Ok(serde_json::to_value(object)?)
}
