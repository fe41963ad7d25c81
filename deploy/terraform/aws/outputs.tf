output "image" {
  description = "The AMI's id."
  value       = aws_ami.pod_vm.id
}

output "security_group" {
  description = "The pod VMs' security group."
  value       = aws_security_group.pod_vms.id
}

output "controller_policy_arn" {
  description = "The policy that lets a controller do its work."
  value       = aws_iam_policy.controller.arn
}

output "controller_role_arn" {
  description = "The role of a controller in EKS; null where none was made."
  value       = one(aws_iam_role.controller[*].arn)
}

output "settings" {
  description = "The part of controller.toml that says where pod VMs come from."
  value       = <<-EOT
    [provider]
    kind = "aws"

    [provider.aws]
    region = "${data.aws_region.here.name}"
    image = "${aws_ami.pod_vm.id}"
    subnets = ${jsonencode(var.subnet_ids)}
    security_groups = ["${aws_security_group.pod_vms.id}"]
    instance_types = ${jsonencode(var.instance_types)}

    [class.default]
    tee = "snp"
    root_of_trust = "cloud-tpm"
  EOT
}
