//! `sample`: a register in this process, and evidence that protects nothing.

use peerpods_evidence::sample::SampleEvidence;

#[derive(Default)]
pub(crate) struct Sample {
    initdata: Option<Vec<u8>>,
}

impl Sample {
    pub(crate) fn evidence(&self, report_data: &[u8]) -> Vec<u8> {
        SampleEvidence { svn: "1".to_owned(), report_data: report_data.to_vec(), initdata: self.initdata.clone() }.encode()
    }

    pub(crate) fn extend(&mut self, digest: &[u8]) {
        self.initdata = Some(digest.to_vec());
    }
}
