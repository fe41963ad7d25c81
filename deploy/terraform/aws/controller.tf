# What the controller may do: launch this image into these subnets with its owner tag on everything, and end what carries that tag.
#
# The tag is peerpods:owner. Its value begins with the cluster's name when the controller's owner file says so; without var.owner any value
# is allowed, and another controller of the same account could then end this one's pod VMs.

locals {
  ec2   = "arn:${data.aws_partition.here.partition}:ec2:${data.aws_region.here.name}:${data.aws_caller_identity.me.account_id}"
  owner = coalesce(var.owner, "*")
}

data "aws_iam_policy_document" "controller" {
  statement {
    sid       = "Look"
    actions   = ["ec2:DescribeImages", "ec2:DescribeInstances", "ec2:DescribeInstanceTypes", "ec2:DescribeInstanceTypeOfferings", "ec2:DescribeSecurityGroups", "ec2:DescribeSubnets"]
    resources = ["*"]
  }

  statement {
    sid     = "LaunchFrom"
    actions = ["ec2:RunInstances"]
    resources = concat(
      ["arn:${data.aws_partition.here.partition}:ec2:${data.aws_region.here.name}::image/${aws_ami.pod_vm.id}", "${local.ec2}:image/${aws_ami.pod_vm.id}"],
      ["arn:${data.aws_partition.here.partition}:ec2:${data.aws_region.here.name}::snapshot/*", "${local.ec2}:security-group/${aws_security_group.pod_vms.id}"],
      [for id in var.subnet_ids : "${local.ec2}:subnet/${id}"],
    )
  }

  statement {
    sid       = "LaunchTagged"
    actions   = ["ec2:RunInstances"]
    resources = ["${local.ec2}:instance/*", "${local.ec2}:volume/*", "${local.ec2}:network-interface/*"]

    condition {
      test     = "StringLike"
      variable = "aws:RequestTag/peerpods:owner"
      values   = [local.owner]
    }
  }

  statement {
    sid       = "TagAtLaunchOnly"
    actions   = ["ec2:CreateTags"]
    resources = ["${local.ec2}:instance/*", "${local.ec2}:volume/*", "${local.ec2}:network-interface/*"]

    condition {
      test     = "StringEquals"
      variable = "ec2:CreateAction"
      values   = ["RunInstances"]
    }
  }

  statement {
    sid       = "EndOwn"
    actions   = ["ec2:TerminateInstances", "ec2:GetConsoleOutput"]
    resources = ["${local.ec2}:instance/*"]

    condition {
      test     = "StringLike"
      variable = "aws:ResourceTag/peerpods:owner"
      values   = [local.owner]
    }
  }
}

resource "aws_iam_policy" "controller" {
  name        = "${local.name}-controller"
  description = "Peerpods controller of ${var.cluster}"
  policy      = data.aws_iam_policy_document.controller.json
  tags        = local.tags
}

# For a controller in EKS: its service account takes this role (IRSA). Elsewhere attach the policy to what the controller runs as.
resource "aws_iam_role" "controller" {
  count = var.oidc_provider_arn == null ? 0 : 1
  name  = "${local.name}-controller"
  tags  = local.tags
  assume_role_policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Effect    = "Allow"
      Principal = { Federated = var.oidc_provider_arn }
      Action    = "sts:AssumeRoleWithWebIdentity"
      Condition = {
        StringEquals = {
          "${replace(var.oidc_provider_arn, "/^.*oidc-provider\\//", "")}:sub" = "system:serviceaccount:${var.service_account}"
          "${replace(var.oidc_provider_arn, "/^.*oidc-provider\\//", "")}:aud" = "sts.amazonaws.com"
        }
      }
    }]
  })
}

resource "aws_iam_role_policy_attachment" "controller" {
  count      = length(aws_iam_role.controller)
  role       = aws_iam_role.controller[0].name
  policy_arn = aws_iam_policy.controller.arn
}
