//! What both tests need: evidence that anybody can write.

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use peerpods_key_broker::{Attester, BoxError};
use serde_json::{Value, json};

/// Makes `sample` evidence.
pub(crate) struct Sample;

#[async_trait]
impl Attester for Sample {
    fn tee(&self) -> String {
        "sample".to_owned()
    }

    async fn evidence(&self, report_data: [u8; 48]) -> Result<Value, BoxError> {
        Ok(json!({ "svn": "1", "report_data": STANDARD.encode(report_data) }))
    }
}
