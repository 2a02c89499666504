"""FSS-1000: 1000 classes with ten images each, 520 to train, 240 to validate, 240 to test.

Wei, Li, Chen, Tai and Tang, "FSS-1000: A 1000-Class Dataset for Few-Shot Segmentation" (CVPR 2020). The
test classes are the authors' (`fss_test_set.txt` of their repository). They left the other two parts open;
the validation classes below are those that HSNet drew (Min, Kang and Cho, ICCV 2021, its `fss/val.txt`) and
most papers since use. Everything else is training.
"""

from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from diffseg_cli.datasets.episode import FewShotDataset, Sample, group_by_class
from diffseg_cli.datasets.truth import Truth
from diffseg_cli.errors import InputError

TEST_NAMES = """
    abe's_flyingfish accordion american_alligator american_chamelon andean_condor anise apple_icon
    arch_bridge arrow astronaut australian_terrier bamboo_dragonfly bamboo_slip banana_boat barber_shaver
    bat bath_ball beet_root bell_pepper big_ben black_bear bloodhound boxing_gloves breast_pump broom bucket
    bulb burj_al bus bustard cabbage_butterfly cablestayed_bridge cantilever_bridge canton_tower
    captain_america_shield carriage cathedrale_paris cd chalk_brush chandelier charge_battery chess_king
    chess_knight chess_queen chicken chicken_leg chiffon_cake chinese_knot church cicada clam
    clearwing_flyingfish cloud coffee_mug coin combination_lock condor cricket crt_screen cuckoo curlew
    dart_target delta_wing diver doormat doublebus doughnut downy_pitch drilling_platform dwarf_beans eagle
    earphone1 earphone2 echidna egg electronic_stove english_foxhound f1_racing fan feather_clothes
    fennel_bulb ferrari911 fish fish_eagle flamingo fly flying_frog flying_geckos flying_snakes
    flying_squirrel fox french_fries ganeva_chair glider_flyingfish goblet golden_plover goldfinch
    groenendael guitar gym_ball haddock hair_razor hang_glider harmonica hawk helicopter hotel_slipper
    hover_board iguana indri ipad iphone iron_man jet_aircraft kart key knife kunai lapwing leaf_egg
    leaf_fan leafhopper leather_shoes leggings lemur_catta letter_opener little_blue_heron lotus magpie_bird
    manatee marimba may_bug meatloaf microscope minicooper missile mite_predator mitten moist_proof_pad
    monkey moon motorbike net_surface_shoes nintendo_3ds nintendo_gba nintendo_sp nintendo_switch
    nintendo_wiiu ocarina oiltank_car onion oriole osprey oyster paper_plane parthenon pencil_sharpener1
    peregine_falcon pheasant phonograph photocopier pidan pizza plastic_bag poached_egg polo_shirt porcupine
    potato_chips pspgo pteropus pumpkin_pie pyramid pyramid_cube pyraminx quail quail_egg rally_car reel
    reflex_camera rice_cooker rocking_chair rubber_eraser rubick_cube rugby_ball ruler samarra_mosque
    santa_sledge screw seagull sealion shower_curtain shumai siamang sled snow_leopard snowman snowplow soap
    soymilk_machine speedboat spiderman spinach stealth_aircraft steering_wheel stingray stone_lion
    stonechat stork strawberry sulphur_butterfly sushi swan sydney_opera_house taj_mahal tiltrotor toaster
    tower_pisa transport_helicopter tredmill truss_bridge tunnel twin_tower vacuum_cup villa_savoye vinyl
    wagtail wandering_albatross warehouse_tray warplane wasp water_buffalo water_heater wheelchair whippet
    white_wolf wig windmill window_screen wooden_boat wooden_spoon
"""
VAL_NAMES = """
    ab_wheel abacus ac_ground african_crocodile airliner albatross apron arabian_camel arctic_fox armadillo
    artichoke baby badger balance_beam balloon banjo barbell baseball basset beagle bee bee_eater
    beer_bottle beer_glass bell bighorn_sheep bittern blenheim_spaniel bluetick bolete bowtie briard
    broccoli bulbul_bird cabbage cactus calculator camomile carambola cardoon ceiling_fan cheese cheetah
    cherry chimpanzee cigar cigarette coconut coffeepot colubus common_newt consomme conversion_plug
    conveyor corn cornmeal cpu crab cradle crayon crepe cricketball crocodile croquet_ball cup cushion daisy
    digital_clock dishwasher dowitcher drum eel english_setter equestrian_helmet espresso_maker fire_balloon
    fire_hydrant fire_screen flat-coated_retriever folding_chair fox_squirrel french_ball frying_pan
    gas_tank giant_schnauzer gibbon ginger gyromitra hair_drier hami_melon hammer hammerhead_shark handcuff
    handkerchief har_gow harp hatchet hippo hotdog ice_lolly iceberg icecream impala ipod ironing_board
    jay_bird kazoo kit_fox kobe_logo kwanyin lacewing laptop lemon lettuce lion lipstick loggerhead_turtle
    loguat louvre_pyramid lycaenid_butterfly macaw mango mashed_potato matchstick mcdonald_sign microsd
    monarch_butterfly monocycle mortar nagoya_castle narcissus nike_logo olive orang oscilloscope ox panda
    parachute parking_meter partridge pay_phone peanut pear piano_keyboard pickelhaube pig pillow pinecone
    pingpong_ball plaice platypus pomegranate power_drill pretzel projector pubg_airdrop pubg_lvl3backpack
    pumpkin rabbit raven razor red_fox redshank refrigerator relay_stick revolver rock_snake rose saltshaker
    sandal sandbar saxophone scarerow school_bus schooner scissors sea_cucumber sea_urchin sewing_machine
    shovel shuriken siamese_cat skateboard ski_mask smoothing_iron sniper_rifle soap_dispenser sock
    soup_bowl spider spider_monkey squirrel_monkey stopwatch stretcher strongbox sturgeon suitcase
    sungnyemun sweatshirt swim_ring syringe tape_player taro television thor's_hammer three-toed_sloth
    thrush tiger_cat tiger_shark timber_wolf toilet_brush toilet_seat tomato totem_pole toucan tow_truck
    tray triumphal_arch tulip turnstile typewriter umbrella upright_piano vacuum vase volleyball vulture
    water_ouzel water_tower weasel whiptail whistle white_stork windsor_tie wine_bottle wolf woodpecker yawl
    yoga_pad yonex_icon
"""
TEST, VAL = tuple(TEST_NAMES.split()), tuple(VAL_NAMES.split())
LAYOUT = "Unpack FSS-1000 so that bus/1.jpg and bus/1.png lie in the folder given with --root."


def read_fss(root: Path, *, split: str = "test") -> FewShotDataset:
    """Classes of one split, ten images each.

    Args:
        root: the folder of the class folders, or the one above it (`fewshot_data` in the published archive).
        split: "train", "val" or "test".

    Raises:
        InputError: a class folder or the mask of an image is missing.
    """
    base = next((c for c in (root, root / "fewshot_data", root / "FSS-1000") if (c / TEST[0]).is_dir()), None)
    if base is None:
        raise InputError(f"{root / TEST[0]} was not found: {root} does not hold FSS-1000.", LAYOUT)
    names = {"test": TEST, "val": VAL}.get(split) or _others(base)
    samples = []
    for name in names:
        images = sorted((base / name).glob("*.jpg"))
        if not images:
            raise InputError(f"{base / name} was not found, or holds no image.", LAYOUT)
        for image in images:
            mask = image.with_suffix(".png")
            if not mask.is_file():
                raise InputError(f"{mask} was not found: it is the mask of {image.name}.", LAYOUT)
            samples.append(Sample(image, mask, name))
    return group_by_class(samples, root)


def read_fss_truth(sample: Sample) -> Truth:
    """Brightness from 128 up is the object: some masks of FSS-1000 have soft or coloured borders.

    Raises:
        InputError: the mask cannot be read.
    """
    try:
        with Image.open(sample.mask) as opened:
            grey = np.asarray(opened.convert("L"))
    except (OSError, UnidentifiedImageError) as error:
        raise InputError(f"{sample.mask} cannot be read as a mask: {error}.", "Unpack it again.") from error
    return Truth(grey >= 128, np.zeros(grey.shape, dtype=bool))


def _others(base: Path) -> list[str]:
    known = {*TEST, *VAL}
    return sorted(folder.name for folder in base.iterdir() if folder.is_dir() and folder.name not in known)
