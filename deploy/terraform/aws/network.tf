# Nodes reach pod VMs, and nobody else does. Pod VMs reach registries, key brokers and their nodes.

resource "aws_security_group" "pod_vms" {
  name        = "${local.name}-pod-vms"
  description = "Peerpods pod VMs of ${var.cluster}"
  vpc_id      = var.vpc_id
  tags        = local.tags
}

resource "aws_vpc_security_group_ingress_rule" "channel" {
  for_each                     = toset(var.node_security_group_ids)
  security_group_id            = aws_security_group.pod_vms.id
  description                  = "guest channel"
  referenced_security_group_id = each.value
  ip_protocol                  = "tcp"
  from_port                    = 15150
  to_port                      = 15150
}

resource "aws_vpc_security_group_ingress_rule" "pod_network" {
  for_each                     = toset(var.node_security_group_ids)
  security_group_id            = aws_security_group.pod_vms.id
  description                  = "pod network (VXLAN)"
  referenced_security_group_id = each.value
  ip_protocol                  = "udp"
  from_port                    = 4789
  to_port                      = 4789
}

resource "aws_vpc_security_group_egress_rule" "all" {
  security_group_id = aws_security_group.pod_vms.id
  description       = "registries, key brokers, nodes"
  cidr_ipv4         = "0.0.0.0/0"
  ip_protocol       = "-1"
}

# The other direction of the pod network: VXLAN from pod VMs to nodes.
resource "aws_vpc_security_group_ingress_rule" "nodes" {
  for_each                     = toset(var.node_security_group_ids)
  security_group_id            = each.value
  description                  = "pod network (VXLAN) of ${local.name}"
  referenced_security_group_id = aws_security_group.pod_vms.id
  ip_protocol                  = "udp"
  from_port                    = 4789
  to_port                      = 4789
}
