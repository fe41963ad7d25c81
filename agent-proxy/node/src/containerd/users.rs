//! Which user an image's configuration names, found by the chain id of the image's layers.

use async_trait::async_trait;
use containerd_client::services::v1::ListImagesRequest;
use containerd_client::services::v1::images_client::ImagesClient;
use sha2::{Digest as _, Sha256};
use tokio::time::timeout;

use super::{LIMIT, Resolver, in_namespace, manifest};
use crate::ports::ResolveFailure;
use crate::snapshotter::ImageUsers;

#[async_trait]
impl ImageUsers for Resolver {
    async fn user_of(&self, namespace: &str, chain_id: &str) -> Option<String> {
        if let Some(user) = self.users.lock().unwrap_or_else(std::sync::PoisonError::into_inner).get(chain_id) {
            return Some(user.clone());
        }
        let found = match timeout(LIMIT, self.find_user(namespace, chain_id)).await {
            Ok(Ok(found)) => found?,
            Ok(Err(error)) => {
                tracing::warn!(%error, chain_id, "the image's user is not known; a user by name will not be found");
                return None;
            }
            Err(_) => return None,
        };
        let mut users = self.users.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if users.len() >= super::MAX_USERS {
            users.clear();
        }
        users.insert(chain_id.to_owned(), found.clone());
        Some(found)
    }
}

impl Resolver {
    async fn find_user(&self, namespace: &str, wanted: &str) -> Result<Option<String>, ResolveFailure> {
        let channel = self.connect().await?;
        let mut images = ImagesClient::new(channel.clone());
        let listed = images.list(in_namespace(namespace, ListImagesRequest::default())?).await;
        let listed = listed.map_err(|status| self.failed("list of images", &status))?.into_inner().images;
        let mut digests: Vec<String> = listed.into_iter().filter_map(|image| Some(image.target?.digest)).collect();
        digests.sort();
        digests.dedup();
        for digest in digests {
            // An image that is only half there is not the one.
            if let Ok(Some((chain, user))) = self.chain_and_user(&channel, namespace, &digest).await
                && chain == wanted
            {
                return Ok(Some(user));
            }
        }
        Ok(None)
    }

    async fn chain_and_user(
        &self,
        channel: &containerd_client::tonic::transport::Channel,
        namespace: &str,
        digest: &str,
    ) -> Result<Option<(String, String)>, ResolveFailure> {
        let mut bytes = self.content(channel, namespace, digest).await?;
        if let Ok(Some(chosen)) = manifest::choose(&bytes) {
            bytes = self.content(channel, namespace, &chosen).await?;
        }
        let Ok(config) = manifest::config(&bytes) else { return Ok(None) };
        let config = self.content(channel, namespace, &config).await?;
        Ok(manifest::layers_and_user(&config).map(|(diff_ids, user)| (chain_id(&diff_ids), user)))
    }
}

/// OCI image-spec `config.md`, "Layer ChainID".
fn chain_id(diff_ids: &[String]) -> String {
    let mut ids = diff_ids.iter();
    let Some(first) = ids.next() else { return String::new() };
    ids.fold(first.clone(), |chain, next| format!("sha256:{}", hex::encode(Sha256::digest(format!("{chain} {next}")))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_of_one_is_its_layer_and_a_longer_one_is_hashed() {
        assert_eq!(chain_id(&["sha256:aa".to_owned()]), "sha256:aa");
        let two = chain_id(&["sha256:aa".to_owned(), "sha256:bb".to_owned()]);
        assert_eq!(two, format!("sha256:{}", hex::encode(Sha256::digest("sha256:aa sha256:bb"))));
        assert_eq!(chain_id(&[]), "");
    }
}
