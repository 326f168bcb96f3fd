"""What the results page of AToP says beside its figures."""

INTRODUCTION = """\
A random transform destroys a perturbation's structure, a network restores the image, a fixed
classifier answers (Lin et al., ICLR 2024). The network is pre-trained to restore, and *fine-tuned*
(AToP) with the loss of the frozen classifier.

*Oblivious*: the attacker runs all his steps on the bare classifier (the protocol of Tables 7 and
9). *Adaptive*: he attacks transform, network and classifier together, over 20 draws in each
gradient, and stops at an image that every draw gets wrong. Figures are percent right with 95 %
intervals. The paper's are of one draw each, and beside them stands the mean of ours over single
draws; the worst of all draws, and images that more than half of them get right, stand below each
table. The worst attack of an image is chosen on other draws than it is scored on. Mask and noise
are on for every image of every batch."""

FACTORS = """\
What of fine-tuning stays against an attacker who knows (the GAN on RT2, Linf 8/255; images that
more than half of the draws get right; p of exact McNemar tests, not corrected for their number,
and of one training of each network). On 2,000 images the exact gradient leaves 15.0 % without
fine-tuning, 16.0 % with it as the paper has it (p .33), and 17.7 % where the examples are made
against transform, network and classifier together, with lambda 1 (p .0035; above the paper's, p
.02, at 3.1 points less of clean accuracy than the paper's and 9.1 more than without):
`fine-tuning-2000`. Whether the examples or lambda did it is not known. In L2 at 1.0, on 512
images, neither is told from the network without fine-tuning (`fine-tuning`). One factor at a
time, fine-tuned for one epoch, compared image by image below:

- **What helps on clean images, and against who does not know, is the classifier's loss.** With
  next to none of it and clean images restored (eq. 5, lambda 0.1 of a sum, 3e-5 here) the network
  stays where it was: 49.8 against 49.0 % clean, 43.9 against 43.4 % under the oblivious PGD-20.
  With it (lambda 0.1 of a mean): 55.1 and 51.4 %. Under the exact gradient the first leaves 18.0
  and the second 14.1 %, and 16.4 % are left without fine-tuning (n = 128).
- **Eq. 9's target harms by itself.** To restore the adversarial image, and not the clean one,
  with next to no classifier's loss costs 17 points of clean accuracy and 15 under PGD-20; at
  lambda 0.1 of a mean the target makes no difference that we can tell.
- **Examples against the classifier alone never go through the network.** They are the paper's.
  The network learns to make images that this classifier reads well, which is a gain on clean
  images and on attacks that ignore it, and by this it moves further from the identity that the
  paper's attacker takes it for: in Table 7 his gradient leaves 20 points more than the exact one
  before fine-tuning on RT2, and 35 after. Of the rows below, where the exact gradient leaves 13.3
  to 20.3 % (n = 128), the highest has its examples made against the whole (p .057 beside those
  against the classifier alone, .012 beside the same with lambda 1, 13.3 %).

In L2 at 0.5, where attacks are weaker, more of the gain on clean images stays: the autoencoder
has 36.7 % with AToP and 27.0 % without (p .0041), the GAN 35.9 and 31.6 % (p .18, both n = 256,
`fine-tuning-purifiers`). In Linf at 8/255 the autoencoder has 9.4 and 10.9 % (p .57).

Not tried: other seeds of training, lambda 1 with examples against the classifier or 0.1 against
the whole for five epochs, examples of several steps or draws against the whole, larger networks,
a classifier that is trained along."""

DIFFERENCES = """\
- Classifiers: ResNet-20 and WRN-16-2 in the place of ResNet-18, ResNet-50, WRN-28-10 and
  WRN-70-16; for ImageNette a ResNet-20 at 64x64, trained on the images at hand, in the place of
  ResNet-34 at 256x256.
- Networks: a GAN and an autoencoder of 1.1 and 0.7 times ResNet-20's operations *per pass* (RT3
  makes four; `benchmarks/atop.py` counts and times both), trained natively at 32x32. The released
  notebooks enlarge CIFAR images to 256x256 before they attack them.
- The three networks of AToP are not fine-tuned alike: on RT2 as in eq. 9 with lambda 0.1 for five
  epochs; on RT3, a step of which takes four passes, for one; on RT1 with eq. 5's target and
  lambda 0.03 for three (see "Does the network restore?").
- A GAN pre-trained on RT1 stands in the rows of RT1 without fine-tuning, one pre-trained on RT2
  in those of RT2 and RT3.
- The error of restoring is a mean over pixels. The paper's may be a sum, whose lambda of 0.1 is
  one of 0.1 / 3,072 here; `atop/factors` has both.
- AutoAttack in its version for random defenses with exact gradients over 20 draws; the paper's is
  its version standard on a random model. Each table names its number of images. As its package
  runs it, in Tables 2 to 6, it is done with an image at the first draw that answers wrongly,
  whatever the others say, and leaves 45.3 % with AToP and 40.6 % without (Table 2, the first 64
  images, more than half of the draws). Where it goes on for three rounds it leaves 9.4 and 18.8 %
  of the same images (p .18; `atop/autoattack`): what the tables have of one round is too high.
- Success is decided by votes over fresh draws; single draw, worst of N and majority stand beside
  each other, and beside the same on clean images.
- PGD-1000 in the rows of RT2 alone; C&W is its margin loss within the ball, 100 steps. In Table 8
  PGD-20 takes the exact gradient alone, PGD-10 that and the paper's. In Table 6 AutoAttack is run
  in Linf; in L2 Table 3 has it, at 0.5.
- Figure 4 prints no figures, so none stands beside ours; its curves are of held-out images.
- Figures 5 and 9: trained on 900 images, ImageNette's two networks on RT1 fill gaps worse than
  straight lines do (mean absolute error on held-out images 0.093 pre-trained and 0.133
  fine-tuned, lines 0.07), and better than the mean (0.17)."""
