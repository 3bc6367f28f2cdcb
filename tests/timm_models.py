"""Models of timm: with which its own groups of layers agree with ours, and where not, and why."""

# The families that every change is to be held to.
NAMED = (
    "vit_tiny_patch16_224",
    "vit_base_patch16_224",
    "vit_small_patch32_224",
    "vit_large_patch14_clip_224",
    "swin_tiny_patch4_window7_224",
    "swin_small_patch4_window7_224",
    "convnext_tiny",
    "convnext_base",
    "convnextv2_nano",
    "resnet18",
    "resnet50",
    "resnet101",
    "efficientnet_b0",
    "efficientnet_b3",
    "tf_efficientnetv2_s",
    "mobilenetv3_small_100",
    "mobilenetv3_large_100",
    "mixer_s16_224",
    "mixer_b16_224",
    "densenet121",
    "densenet201",
    "beit_base_patch16_224",
    "beitv2_large_patch16_224",
)

# Two models of each other file of timm where they agree.
OTHERS = (
    "aimv2_1b_patch14_224",
    "bat_resnext26ts",
    "beit_large_patch16_384",
    "botnet26t_256",
    "convit_base",
    "convit_small",
    "convmixer_1024_20_ks9_p14",
    "convmixer_768_32",
    "convnext_atto",
    "convnext_xlarge",
    "crossvit_18_240",
    "crossvit_9_240",
    "cs3darknet_focus_l",
    "cspnext_l",
    "cspnext_s",
    "davit_base",
    "davit_huge_fl",
    "deepseek_vit_412m",
    "deit3_base_patch16_224",
    "deit_base_distilled_patch16_224",
    "eca_vovnet39b",
    "ecaresnet26t",
    "edgenext_base",
    "edgenext_small_rw",
    "efficientvit_b0",
    "efficientvit_b3",
    "efficientvit_m0",
    "efficientvit_m3",
    "ese_vovnet39b_evos",
    "eva02_base_patch14_224",
    "fastvit_ma36",
    "fastvit_s12",
    "fbnetv3_b",
    "focalnet_base_lrf",
    "focalnet_small_lrf",
    "gemma4_vit_167m",
    "gemma4_vit_570m",
    "gmixer_12_224",
    "halonet_h1",
    "hardcorenas_a",
    "hardcorenas_d",
    "hgnet_base",
    "hgnetv2_b2",
    "hiera_base_224",
    "hiera_large_224",
    "hieradet_small",
    "inception_next_atto",
    "inception_next_small",
    "lcnetv2_base",
    "lcnetv2_large",
    "legacy_senet154",
    "legacy_seresnet101",
    "levit_128",
    "levit_conv_128",
    "lowformer_b0",
    "lowformer_b15",
    "mambaout_base",
    "mambaout_femto",
    "mixer_l16_224",
    "mobilenet_edgetpu_v2_s",
    "mobilenetv4_conv_aa_medium",
    "mobilenetv5_300m",
    "mobilevit_s",
    "mobilevitv2_100",
    "naflexvit_base_patch16_gap",
    "naflexvit_huge_patch16_radio_v3",
    "nest_base",
    "nest_tiny",
    "nextvit_base",
    "nextvit_large",
    "pnasnet5large",
    "qwen3_vit_88m",
    "rdnet_base",
    "rdnet_small",
    "regnetv_040",
    "regnety_008",
    "repvgg_b0",
    "repvit_m0_9",
    "repvit_m1_5",
    "res2net50_14w_8s",
    "res2net50_48w_2s",
    "resnest14d",
    "resnest50d_4s2x40d",
    "resnetblur18",
    "resnetv2_18",
    "resnetv2_50x1_bit",
    "sam2_hiera_large",
    "samvit_base_patch16",
    "samvit_huge_patch16",
    "sequencer2d_l",
    "sequencer2d_m",
    "shvit_s1",
    "shvit_s3",
    "skresnet18",
    "skresnet50",
    "starnet_s1",
    "starnet_s4",
    "swiftformer_l1",
    "swiftformer_xs",
    "swin_base_patch4_window7_224",
    "swin_s3_base_224",
    "swinv2_base_window8_256",
    "swinv2_cr_base_224",
    "swinv2_cr_large_384",
    "swinv2_large_window12to16_192to256",
    "test_vit_relpos",
    "tiny_vit_21m_224",
    "tiny_vit_5m_224",
    "tnt_b_patch16_224",
    "tnt_s_legacy_patch16_224",
    "tresnet_l",
    "tresnet_v2_l",
    "vit_base_mci_224",
    "vit_gigantic_patch14_clip_224",
    "vit_huge_plus_patch16_dinov3_qkvb",
    "vit_relpos_medium_patch16_224",
    "volo_d1_224",
    "volo_d3_448",
    "xception41",
    "xception65",
    "xcit_large_24_p8_224",
    "xcit_small_12_p16_224",
)

# Models with layers that are ours on purpose: which these are, and why timm's groups differ.
DIFFERENT = {
    "cait_xs24_384": (
        "stem blocks.{0..23} blocks_token_only.{0..1} head",
        "timm gives the blocks of the class token the numbers of the last other blocks",
    ),
    "coat_lite_tiny": (
        "stem serial_blocks1.{0..1} serial_blocks2.{0..1} serial_blocks3.{0..1} "
        "serial_blocks4.{0..1} head",
        "the embeddings of all stages are registered before the first block",
    ),
    "coatnet_0_224": (
        "stem stages.0.blocks.{0..1} stages.1.blocks.{0..2} stages.2.blocks.{0..4} "
        "stages.3.blocks.{0..1} head",
        "a stage is one group of timm's",
    ),
    "cpubone_b0_bfrobust": (
        "stem stages.0.0 stages.1.0 stages.2.{0..3} stages.3.{0..4} head",
        "a stage is one group of timm's",
    ),
    "deepseek_vit_412m_align": (
        "stem encoder.blocks.{0..31} head",
        "what projects the features for a language model is a head",
    ),
    "dla34": (
        "stem level2 level3.tree{1..2} level4.tree{1..2} level5 head",
        "a tree of two trees has these as layers, one with more than two parts is one layer",
    ),
    "dm_nfnet_f0": (
        "stem stages.0.0 stages.1.{0..1} stages.2.{0..5} stages.3.{0..2} head",
        "no norm ends the last block, so the last convolution is the head's",
    ),
    "dpn48b": (
        "stem features.conv2_{1..3} features.conv3_{1..4} features.conv4_{1..6} "
        "features.conv5_{1..3} head",
        "the last norm takes in more than the last block, as in a DenseNet",
    ),
    "efficientformer_l1": (
        "stem stages.0.blocks.{0..2} stages.1.blocks.{0..1} stages.2.blocks.{0..5} "
        "stages.3.blocks.{0..2} stages.3.blocks.4 head",
        "a stage is one group of timm's",
    ),
    "efficientformerv2_s1": (
        "stem stages.0.blocks.{0..2} stages.1.blocks.{0..2} stages.2.blocks.{0..8} "
        "stages.3.blocks.{0..5} head",
        "a stage is one group of timm's",
    ),
    "fasternet_t0": (
        "stem stages.0.blocks.0 stages.1.blocks.{0..1} stages.2.blocks.{0..7} "
        "stages.3.blocks.{0..1} head",
        "each stage registers what leads to it behind its blocks",
    ),
    "gcvit_tiny": (
        "stem stages.0.blocks.{0..2} stages.1.blocks.{0..3} stages.2.blocks.{0..18} "
        "stages.3.blocks.{0..4} head",
        "a stage is one group of timm's",
    ),
    "ghostnet_050": (
        "stem blocks.0.0 blocks.1.0 blocks.2.0 blocks.3.0 blocks.4.0 blocks.5.0 "
        "blocks.6.{0..4} blocks.7.0 blocks.8.{0..3} blocks.9.0 head",
        "what stands behind the pooling is the head's",
    ),
    "hrnet_w18": (
        "stem stage2.0 stage3.{0..3} stage4.{0..2} incre_modules.{0..3} head",
        "the first layers are small beside the stages; those of the head are blocks",
    ),
    "iformer_l_distilled": (
        "stem stages.0.blocks.{0..1} stages.1.blocks.{0..1} stages.2.blocks.{0..32} "
        "stages.3.blocks.{0..5} head",
        "timm's pattern for the last norm takes in the whole head",
    ),
    "inception_resnet_v2": (
        "stem repeat.{0..9} repeat_1.{0..19} repeat_2.{0..8} block8 head",
        "the modules between the rows join the block before them",
    ),
    "inception_v3": (
        "stem Mixed_5b Mixed_5c Mixed_5d Mixed_6a Mixed_6b Mixed_6c Mixed_6d Mixed_6e "
        "Mixed_7a Mixed_7b Mixed_7c head",
        "timm splits the stem where it pools",
    ),
    "inception_v4": (
        "stem features.{4..21} head",
        "what leads to the blocks in one row with them is the stem's",
    ),
    "legacy_xception": (
        "stem block{1..12} conv{3..4} head",
        "separable convolutions in a row are layers",
    ),
    "maxvit_pico_rw_256": (
        "stem stages.0.blocks.{0..1} stages.1.blocks.{0..1} stages.2.blocks.{0..4} "
        "stages.3.blocks.{0..1} head",
        "a stage is one group of timm's",
    ),
    "mvitv2_base": (
        "stem stages.0.blocks.{0..1} stages.1.blocks.{0..2} stages.2.blocks.{0..15} "
        "stages.3.blocks.{0..2} head",
        "a stage is one group of timm's",
    ),
    "nasnetalarge": (
        "stem cell_{0..17} head",
        "a reduction cell joins the cell before it",
    ),
    "nf_regnet_b4": (
        "stem stages.0.{0..1} stages.1.{0..5} stages.2.{0..10} stages.3.{0..10} head",
        "no norm ends the last block, so the last convolution is the head's",
    ),
    "pvt_v2_b0": (
        "stem stages.0.blocks.{0..1} stages.1.blocks.{0..1} stages.2.blocks.{0..1} "
        "stages.3.blocks.{0..1} head",
        "a stage is one group of timm's",
    ),
    "qwen3_vit_306m_enc": (
        "stem blocks.{0..23} head",
        "what merges the features for a language model is a head",
    ),
    "repghostnet_050": (
        "stem blocks.0.0 blocks.1.0 blocks.2.0 blocks.3.0 blocks.4.0 blocks.5.0 "
        "blocks.6.{0..4} blocks.7.0 blocks.8.{0..3} blocks.9.0 head",
        "what stands behind the pooling is the head's",
    ),
    "rexnet_100": (
        "stem features.{0..15} head",
        "the convolution that leads from the blocks ends the last one, as in an EfficientNet",
    ),
    "rexnetr_100": (
        "stem features.{0..15} head",
        "the convolution that leads from the blocks ends the last one, as in an EfficientNet",
    ),
    "selecsls42": (
        "stem features.{0..5} head",
        "convolutions in what is called a head are the head's",
    ),
    "twins_svt_base": (
        "stem blocks.0.{0..1} blocks.1.{0..1} blocks.2.{0..17} blocks.3.{0..1} head",
        "the embeddings of all stages are registered before the first block",
    ),
    "vgg11": (
        "features.0 features.3 features.6 features.8 features.11 features.13 features.16 "
        "features.18 pre_logits head",
        "without blocks each part is a layer",
    ),
    "visformer_tiny": (
        "stem stage1.{0..6} stage2.{0..3} stage3.{0..3} head",
        "the embedding of a stage joins the block before it",
    ),
    "vit_large_r50_s32_384": (
        "stem patch_embed.backbone.stages.0.blocks.{0..2} "
        "patch_embed.backbone.stages.1.blocks.{0..3} "
        "patch_embed.backbone.stages.2.blocks.{0..5} "
        "patch_embed.backbone.stages.3.blocks.{0..2} blocks.{0..23} head",
        "timm has the whole ResNet in the stem",
    ),
    "vitamin_base_224": (
        "stem patch_embed.backbone.stages.0.{0..1} patch_embed.backbone.stages.1.{0..3} "
        "blocks.{0..13} head",
        "timm has the stages of convolutions in the stem",
    ),
}
