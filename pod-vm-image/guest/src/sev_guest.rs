//! `/dev/sev-guest`: reports of SNP by the ioctls of linux/sev-guest.h, for kernels without configfs-tsm.
//!
//! The driver encrypts a request to the firmware and waits for it; it allows one at a time and does not come back to a request that
//! failed half-way, so nothing is tried again here but the same report without certificates, where a host has no way to hand over any.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;

use nix::errno::Errno;
use peerpods_attester::{SevGuest, SevGuestAnswer};

const DEVICE: &str = "/dev/sev-guest";

/// The only version of messages that the driver knows of.
const MESSAGE_VERSION: u8 = 1;
/// The driver takes no larger buffer for certificates (`SEV_FW_BLOB_MAX_SIZE` of linux/psp-sev.h), and wants whole pages.
const CERTIFICATES_BYTES: usize = 16 << 10;

/// `struct snp_report_req`: report data, the privilege level that is to be in the report, zeros.
#[repr(C)]
struct ReportRequest {
    user_data: [u8; 64],
    vmpl: u32,
    reserved: [u8; 28],
}

/// `struct snp_ext_report_req`.
#[repr(C)]
struct ExtReportRequest {
    data: ReportRequest,
    certs_address: u64,
    certs_len: u32,
}

/// `struct snp_report_resp`.
#[repr(C)]
struct ReportResponse {
    data: [u8; 4000],
}

/// `struct snp_guest_request_ioctl`.
#[repr(C)]
struct GuestRequest {
    msg_version: u8,
    req_data: u64,
    resp_data: u64,
    /// The firmware's error below, the hypervisor's above.
    exitinfo2: u64,
}

nix::ioctl_readwrite!(
    /// A report.
    snp_get_report,
    b'S',
    0,
    GuestRequest
);
nix::ioctl_readwrite!(
    /// A report and the host's certificates.
    snp_get_ext_report,
    b'S',
    2,
    GuestRequest
);

struct Device(File);

/// Opens the device.
pub(crate) fn open() -> io::Result<Box<dyn SevGuest>> {
    let file = File::options().read(true).write(true).open(DEVICE);
    let file = file.map_err(|error| io::Error::new(error.kind(), format!("open {DEVICE}: {error}")))?;
    tracing::info!(device = DEVICE, "configfs-tsm has no reports: this machine's are asked for by ioctl");
    Ok(Box::new(Device(file)))
}

impl SevGuest for Device {
    fn report(&mut self, report_data: &[u8; 64]) -> io::Result<SevGuestAnswer> {
        match self.ext_report(report_data) {
            Err(error) => {
                tracing::info!(%error, "the host hands over no certificates with a report");
                self.bare_report(report_data)
            }
            answered => answered,
        }
    }
}

impl Device {
    #[allow(unsafe_code, reason = "the driver has no safe interface")]
    fn ext_report(&self, report_data: &[u8; 64]) -> io::Result<SevGuestAnswer> {
        let mut certificates = vec![0_u8; CERTIFICATES_BYTES];
        let mut request = ExtReportRequest {
            data: report_request(report_data),
            certs_address: certificates.as_mut_ptr().expose_provenance() as u64,
            certs_len: u32::try_from(CERTIFICATES_BYTES).map_err(|_| io::ErrorKind::InvalidInput)?,
        };
        let mut response = ReportResponse { data: [0; 4000] };
        let mut call = call(&raw mut request, &raw mut response);
        // SAFETY: the driver reads and writes the three structures, whose layout is the header's, and no more of the buffer than the
        // request says it has; all of them live until the call returns, and nothing else points to them meanwhile.
        let done = unsafe { snp_get_ext_report(self.0.as_raw_fd(), &raw mut call) };
        done.map_err(|error| failed("SNP_GET_EXT_REPORT", error, &call))?;
        Ok(SevGuestAnswer { message: response.data.to_vec(), certificates })
    }

    #[allow(unsafe_code, reason = "the driver has no safe interface")]
    fn bare_report(&self, report_data: &[u8; 64]) -> io::Result<SevGuestAnswer> {
        let mut request = report_request(report_data);
        let mut response = ReportResponse { data: [0; 4000] };
        let mut call = call(&raw mut request, &raw mut response);
        // SAFETY: as above, without a buffer.
        let done = unsafe { snp_get_report(self.0.as_raw_fd(), &raw mut call) };
        done.map_err(|error| failed("SNP_GET_REPORT", error, &call))?;
        Ok(SevGuestAnswer { message: response.data.to_vec(), certificates: Vec::new() })
    }
}

/// Level 0 is the kernel's own: below a paravisor, which has a level above it, the vTPM is the way to a report.
fn report_request(report_data: &[u8; 64]) -> ReportRequest {
    ReportRequest { user_data: *report_data, vmpl: 0, reserved: [0; 28] }
}

fn call<T>(request: *mut T, response: *mut ReportResponse) -> GuestRequest {
    let address = |pointer: usize| pointer as u64;
    let (req_data, resp_data) = (address(request.expose_provenance()), address(response.expose_provenance()));
    GuestRequest { msg_version: MESSAGE_VERSION, req_data, resp_data, exitinfo2: 0 }
}

fn failed(ioctl: &str, error: Errno, call: &GuestRequest) -> io::Error {
    let (firmware, hypervisor) = (call.exitinfo2 & 0xffff_ffff, call.exitinfo2 >> 32);
    let text = format!("{ioctl}: {}; firmware error {firmware:#x}, hypervisor error {hypervisor:#x}", error.desc());
    io::Error::new(io::Error::from(error).kind(), text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::mem::{offset_of, size_of};

    /// As a C compiler lays out linux/sev-guest.h.
    #[test]
    fn structures_are_the_kernels() {
        assert_eq!((size_of::<ReportRequest>(), offset_of!(ReportRequest, vmpl), offset_of!(ReportRequest, reserved)), (96, 64, 68));
        assert_eq!(size_of::<ReportResponse>(), 4000);
        assert_eq!(size_of::<ExtReportRequest>(), 112);
        assert_eq!((offset_of!(ExtReportRequest, certs_address), offset_of!(ExtReportRequest, certs_len)), (96, 104));
        assert_eq!(size_of::<GuestRequest>(), 32);
        assert_eq!((offset_of!(GuestRequest, req_data), offset_of!(GuestRequest, resp_data)), (8, 16));
        assert_eq!(offset_of!(GuestRequest, exitinfo2), 24);
    }

    #[test]
    fn requests_have_the_kernels_numbers() {
        assert_eq!(nix::request_code_readwrite!(b'S', 0, size_of::<GuestRequest>()), 0xc020_5300);
        assert_eq!(nix::request_code_readwrite!(b'S', 2, size_of::<GuestRequest>()), 0xc020_5302);
    }

    /// A kernel without the device gives each request an error, and so does a file that is no such device.
    #[test]
    fn refusal_of_the_kernel_is_told() {
        let mut device = Device(File::open("/dev/null").expect("opens"));
        let error = device.report(&[1; 64]).map(drop).expect_err("it is no such device").to_string();
        assert!(error.starts_with("SNP_GET_REPORT: ") && error.ends_with("firmware error 0x0, hypervisor error 0x0"), "{error}");
    }

    #[test]
    fn both_errors_of_a_request_are_told() {
        let call = GuestRequest { msg_version: 1, req_data: 0, resp_data: 0, exitinfo2: 0x2_0000_0016 };
        let error = failed("SNP_GET_REPORT", Errno::EIO, &call).to_string();
        assert!(error.ends_with("firmware error 0x16, hypervisor error 0x2"), "{error}");
    }
}
